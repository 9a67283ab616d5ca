// Kubectlyaml reads manifests with the code that kubectl reads them with, and prints the objects that kubectl would send.
//
// Each line of standard input is one file, in base64; each line of standard output is its answer in JSON. The reading is
// StreamVisitor.Visit and InfoForData of k8s.io/cli-runtime/pkg/resource (visitor.go, mapper.go), then its
// FlattenListVisitor, without what needs a server.
package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
)

type answer struct {
	Objects []json.RawMessage `json:"objects"`
	Error   string            `json:"error,omitempty"`
}

func main() {
	lines := bufio.NewReader(os.Stdin)
	out := bufio.NewWriter(os.Stdout)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		content, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(line)))
		if err != nil {
			panic(err)
		}
		said := answer{Objects: []json.RawMessage{}}
		if err := read(content, &said); err != nil {
			said.Error = err.Error()
		}
		text, err := json.Marshal(said)
		if err != nil {
			panic(err)
		}
		out.Write(text)
		out.WriteByte('\n')
		out.Flush()
	}
}

func read(content []byte, said *answer) error {
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(content), 4096)
	for {
		ext := runtime.RawExtension{}
		if err := decoder.Decode(&ext); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("error parsing: %w", err)
		}
		ext.Raw = bytes.TrimSpace(ext.Raw)
		if len(ext.Raw) == 0 || bytes.Equal(ext.Raw, []byte("null")) {
			continue
		}
		object, _, err := unstructured.UnstructuredJSONScheme.Decode(ext.Raw, nil, nil)
		if err != nil {
			return fmt.Errorf("unable to decode: %w", err)
		}
		objects := []runtime.Object{object}
		if meta.IsListType(object) {
			if objects, err = meta.ExtractList(object); err != nil {
				return err
			}
		}
		for _, each := range objects {
			// Twice: kubectl sends what it has read as JSON, and the API server reads that.
			text, err := runtime.Encode(unstructured.UnstructuredJSONScheme, each)
			if err != nil {
				return err
			}
			said.Objects = append(said.Objects, bytes.TrimSpace(text))
		}
	}
}
