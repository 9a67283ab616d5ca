// Go's file server over a directory, as a controller that is written in Go serves modules: the rival for the blob port beside nginx.
package main

import (
	"flag"
	"log"
	"net"
	"net/http"
)

func main() {
	listen := flag.String("listen", "", "HOST:PORT")
	root := flag.String("root", "", "the directory")
	flag.Parse()
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.Serve(listener, http.FileServer(http.Dir(*root))))
}
