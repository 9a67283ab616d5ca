module autowasm.test/fileserver

go 1.26.0

tool autowasm.test/fileserver/fileserver
