// Kstatus tells the status of Kubernetes objects as GitOps tools do: with kstatus' Compute, as Helm 4 and Flux by default
// (https://github.com/fluxcd/cli-utils/tree/main/pkg/kstatus), or with the healthCheckExprs of a Flux Kustomization
// (https://fluxcd.io/flux/components/kustomize/kustomizations/#health-check-expressions).
//
// Standard input is one question in JSON; standard output is a JSON array with the answer for each object.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"github.com/fluxcd/pkg/apis/kustomize"
	"github.com/fluxcd/pkg/runtime/cel"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

type question struct {
	Objects []json.RawMessage `json:"objects"`
	// Nil: kstatus' Compute.
	Expressions *kustomize.HealthCheckExpressions `json:"expressions,omitempty"`
}

type answer struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "kstatus:", err)
		os.Exit(1)
	}
}

func run() error {
	var asked question
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		return err
	}
	compute := status.Compute
	if asked.Expressions != nil {
		evaluator, err := cel.NewStatusEvaluator(asked.Expressions)
		if err != nil {
			return err
		}
		compute = func(object *unstructured.Unstructured) (*status.Result, error) {
			return evaluator.Evaluate(context.Background(), object)
		}
	}
	answers := make([]answer, 0, len(asked.Objects))
	for _, raw := range asked.Objects {
		object := &unstructured.Unstructured{}
		if err := object.UnmarshalJSON(raw); err != nil { // numbers as a client of Kubernetes reads them
			return err
		}
		result, err := compute(object)
		if err != nil {
			return fmt.Errorf("%s: %w", object.GetName(), err)
		}
		answers = append(answers, answer{Status: result.Status.String(), Message: result.Message})
	}
	return json.NewEncoder(os.Stdout).Encode(answers)
}
