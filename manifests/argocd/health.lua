-- Health of an AutoWasm for Argo CD, by the rules of kstatus. docs/how-to/gitops.md says where it goes.
local status = obj.status or {}
local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  if condition.status == "True" then
    conditions[condition.type] = condition
  end
end
local observed = status.observedGeneration == obj.metadata.generation
if conditions.Reconciling and conditions.Reconciling.reason == "RolloutPaused" and observed then
  -- It waits for a person, as a paused Deployment or Rollout does.
  return { status = "Suspended", message = conditions.Reconciling.message }
end
if conditions.Reconciling then
  return { status = "Progressing", message = conditions.Reconciling.message }
end
if not observed then
  return { status = "Progressing", message = "wasmer has not observed generation " .. tostring(obj.metadata.generation) }
end
if conditions.Stalled then
  return { status = "Degraded", message = conditions.Stalled.message }
end
if conditions.Ready then
  return { status = "Healthy", message = conditions.Ready.message }
end
return { status = "Progressing", message = status.message or "" }
