// istio-listeners prints what istiod sends to proxies: their listeners with every HTTP filter, and the names of their clusters.
//
//	istio-listeners < SCENE > LISTENERS
//
// A scene is JSON: {"configs": "YAML documents, Istio's objects and Kubernetes'", "proxies": [PROXY, …]}. A PROXY has `name`,
// `type` (sidecar, router or waypoint), `namespace`, `address`, `labels`, and `metadata` as the proxy's node has it.
// Printed are {"proxies": {NAME: …}, "warnings": […]}; the warnings are those of istiod's validating webhook. Nothing listens
// and nothing is dialled: it is istiod's own renderer (pilot/test/xds, FakeDiscoveryServer) as a program. Istio's feature flags
// are environment variables, as istiod's are. Ends with status 1 and a message if istiod refuses a part of the scene.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"istio.io/istio/pilot/pkg/config/kube/crd"
	"istio.io/istio/pilot/pkg/model"
	"istio.io/istio/pilot/test/xds"
	"istio.io/istio/pkg/config/schema/collections"
	"istio.io/istio/pkg/log"
	"istio.io/istio/pkg/test"
	"istio.io/istio/pkg/wellknown"
)

type scene struct {
	Configs string  `json:"configs"`
	Proxies []proxy `json:"proxies"`
}

type proxy struct {
	Name      string            `json:"name"`
	Type      model.NodeType    `json:"type"`
	Namespace string            `json:"namespace"`
	Address   string            `json:"address"`
	Labels    map[string]string `json:"labels"`
	Metadata  map[string]any    `json:"metadata"`
}

type answer struct {
	Proxies  map[string]rendered `json:"proxies"`
	Warnings []string            `json:"warnings"`
}

type rendered struct {
	Listeners []renderedListener `json:"listeners"`
	Clusters  []string           `json:"clusters"`
}

type renderedListener struct {
	Name string `json:"name"`
	// Of the listener as JSON with sorted keys: maps within an Any have no order on the wire, and Envoy's own hash, by which it
	// tells a changed listener, has them sorted as well. Equal digests mean that a proxy changes nothing.
	SHA256 string          `json:"sha256"`
	Chains []renderedChain `json:"chains"`
}

type renderedChain struct {
	Name  string          `json:"name"`
	Match json.RawMessage `json:"match"`
	// Absent: a chain without an HTTP connection manager.
	HTTPFilters []json.RawMessage `json:"httpFilters,omitempty"`
}

func main() {
	// Istio's log goes to the standard output otherwise.
	options := log.DefaultOptions()
	options.OutputPaths = []string{"stderr"}
	if err := log.Configure(options); err != nil {
		fail(err)
	}
	var input scene
	decoder := json.NewDecoder(os.Stdin)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&input); err != nil {
		fail(fmt.Errorf("reading the scene: %w", err))
	}
	output := answer{Proxies: map[string]rendered{}, Warnings: []string{}}
	if err := test.Wrap(func(t test.Failer) {
		output.Warnings = validate(t, input.Configs)
		render(t, input, output.Proxies)
	}); err != nil {
		fail(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(output); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// As istiod's webhook does before the API server stores an object.
func validate(t test.Failer, text string) []string {
	configs, _, err := crd.ParseInputs(text)
	if err != nil {
		t.Fatalf("reading the configs: %v", err)
	}
	warnings := []string{}
	for _, one := range configs {
		schema, found := collections.All.FindByGroupVersionKind(one.GroupVersionKind)
		if !found {
			t.Fatalf("%s %s: no such kind", one.GroupVersionKind, one.Name)
		}
		warning, err := schema.ValidateConfig(one)
		if err != nil {
			t.Fatalf("%s %s: %v", one.GroupVersionKind.Kind, one.Name, err)
		}
		if warning != nil {
			warnings = append(warnings, fmt.Sprintf("%s %s: %v", one.GroupVersionKind.Kind, one.Name, warning))
		}
	}
	return warnings
}

func render(t test.Failer, input scene, output map[string]rendered) {
	server := xds.NewFakeDiscoveryServer(t, xds.FakeOptions{
		ConfigString: input.Configs,
		// The ambient index reads the cluster's objects, not the store of configurations.
		KubernetesObjectString: input.Configs,
	})
	for _, one := range input.Proxies {
		node := server.SetupProxy(node(t, one))
		result := rendered{Listeners: []renderedListener{}, Clusters: []string{}}
		for _, each := range server.Listeners(node) {
			result.Listeners = append(result.Listeners, ofListener(t, each))
		}
		for _, each := range server.Clusters(node) {
			result.Clusters = append(result.Clusters, each.Name)
		}
		// Without an order in istiod.
		slices.SortFunc(result.Listeners, func(a, b renderedListener) int { return strings.Compare(a.Name, b.Name) })
		slices.Sort(result.Clusters)
		output[one.Name] = result
	}
}

func node(t test.Failer, one proxy) *model.Proxy {
	raw, err := structpb.NewStruct(one.Metadata)
	if err != nil {
		t.Fatalf("metadata of %s: %v", one.Name, err)
	}
	metadata, err := model.ParseMetadata(raw)
	if err != nil {
		t.Fatalf("metadata of %s: %v", one.Name, err)
	}
	metadata.Labels = one.Labels
	return &model.Proxy{
		ID:              one.Name + "." + one.Namespace,
		Type:            one.Type,
		ConfigNamespace: one.Namespace,
		IPAddresses:     []string{one.Address},
		Labels:          one.Labels,
		Metadata:        metadata,
	}
}

func ofListener(t test.Failer, one *listener.Listener) renderedListener {
	digest := sha256.Sum256(canonical(t, one))
	result := renderedListener{Name: one.Name, SHA256: hex.EncodeToString(digest[:]), Chains: []renderedChain{}}
	chains := one.FilterChains
	if one.DefaultFilterChain != nil {
		chains = append(chains, one.DefaultFilterChain)
	}
	for _, chain := range chains {
		found := renderedChain{Name: chain.Name, Match: asJSON(t, chain.FilterChainMatch)}
		for _, filter := range chain.Filters {
			if filter.Name != wellknown.HTTPConnectionManager {
				continue
			}
			manager := &hcm.HttpConnectionManager{}
			if err := filter.GetTypedConfig().UnmarshalTo(manager); err != nil {
				t.Fatalf("listener %s, chain %s: %v", one.Name, chain.Name, err)
			}
			for _, each := range manager.HttpFilters {
				found.HTTPFilters = append(found.HTTPFilters, asJSON(t, each))
			}
		}
		result.Chains = append(result.Chains, found)
	}
	return result
}

func canonical(t test.Failer, message proto.Message) []byte {
	var value any
	if err := json.Unmarshal(asJSON(t, message), &value); err != nil {
		t.Fatalf("as JSON: %v", err)
	}
	text, err := json.Marshal(value) // sorts keys
	if err != nil {
		t.Fatalf("as JSON: %v", err)
	}
	return text
}

func asJSON(t test.Failer, message proto.Message) json.RawMessage {
	text, err := protojson.Marshal(message)
	if err != nil {
		t.Fatalf("as JSON: %v", err)
	}
	return text
}
