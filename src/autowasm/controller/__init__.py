"""The AutoWasm reconciler with its decisions, fetch jobs, policies and writes; `pods/` follows the Pods, `rollout/` stages rollouts."""
