{{- define "wasmer.labels" -}}
app: {{ .Values.name }}
{{ include "wasmer.selector" . }}
app.kubernetes.io/part-of: autowasm
{{- end }}

{{- define "wasmer.selector" -}}
app.kubernetes.io/name: {{ .Values.name }}
{{- end }}

{{- define "wasmer.metadata" -}}
name: {{ .Values.name }}
namespace: {{ .Values.namespace }}
labels:
  {{- include "wasmer.labels" . | nindent 2 }}
{{- end }}

{{- define "wasmer.account" -}}
{{ .Values.serviceAccount.name | default .Values.name }}
{{- end }}

{{- define "wasmer.subject" -}}
- kind: ServiceAccount
  name: {{ include "wasmer.account" . }}
  namespace: {{ .Values.namespace }}
{{- end }}

{{- define "wasmer.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest }}{{ printf "%s@%s" $image.repository $image.digest }}
{{- else }}{{ printf "%s:%s" $image.repository ($image.tag | default .Chart.AppVersion) }}{{ end }}
{{- end }}

{{- /* [., a securityContext]. seccompProfile is a field since Kubernetes 1.19; Helm refuses fields that the API server does not know. */}}
{{- define "wasmer.securityContext" -}}
{{- $context := index . 1 }}
{{- if and (kindIs "map" $context) (semverCompare "<1.19.0-0" (index . 0).Capabilities.KubeVersion.Version) }}
{{- $context = omit $context "seccompProfile" }}
{{- end }}
{{- toYaml $context }}
{{- end }}

{{- define "wasmer.priorityClass" -}}
{{ .Values.priorityClassName | default (ternary .Values.name "" .Values.priorityClass.create) }}
{{- end }}

{{- define "wasmer.policyMap" -}}
{{ .Values.policy.configMap | default (ternary (printf "%s-policy" .Values.name) "" (not (empty .Values.policy.namespaces))) }}
{{- end }}

{{- /* What the schema cannot say. */ -}}
{{- define "wasmer.check" -}}
{{- if and (gt (int .Values.replicas) 1) (eq (toString .Values.config.leaderElect) "false") }}
{{- fail "config.leaderElect: false is for one replica: all of them would write. Set replicas: 1, or leave leaderElect out." }}
{{- end }}
{{- if and (not .Values.rbac.clusterWide) (empty .Values.config.watchNamespace) }}
{{- fail "rbac.clusterWide: false needs config.watchNamespace: the namespaces in which wasmer may work." }}
{{- end }}
{{- if and .Values.policy.configMap .Values.policy.namespaces }}
{{- fail "policy: give either namespaces or configMap, not both." }}
{{- end }}
{{- $everywhere := 0 }}
{{- range .Values.registryCa }}
{{- if not .host }}{{ $everywhere = add1 $everywhere }}{{ end }}
{{- end }}
{{- if gt (int $everywhere) 1 }}
{{- fail "registryCa: only one entry may be without a host; put those certificates into one." }}
{{- end }}
{{- end }}

{{- define "wasmer.args" -}}
- controller
- --cache-dir=/var/cache/wasmer
{{- with .Values }}
{{- if ne .name "wasmer" }}
- --service-name={{ .name }}
- --peers-service={{ .name }}-peers
- --lease-name={{ .name }}
{{- end }}
{{- if ne .namespace "istio-system" }}
- --service-namespace={{ .namespace }}
{{- end }}
{{- with .rootNamespace }}
- --root-namespace={{ . }}
{{- end }}
{{- if ne .clusterDomain "cluster.local" }}
- --cluster-domain={{ .clusterDomain }}
{{- end }}
{{- if ne (int .service.port) 8081 }}
- --service-port={{ .service.port }}
- --listen=[::]:{{ .service.port }}
{{- end }}
{{- if ne (int .metrics.port) 8080 }}
- --admin-listen=[::]:{{ .metrics.port }}
{{- end }}
{{- end }}
{{- range $index, $ca := .Values.registryCa }}
- {{ printf "--registry-ca-file=%s/etc/wasmer/ca/%d/%s" (ternary (printf "%s=" $ca.host) "" (not (empty $ca.host))) $index ($ca.key | default "ca.crt") | quote }}
{{- end }}
{{- if include "wasmer.policyMap" . }}
- --policy-file=/etc/wasmer/policy/policy.yaml
{{- end }}
{{- range $name, $value := .Values.config }}
{{- $flag := kebabcase $name }}
{{- if kindIs "bool" $value }}
{{- if $value }}
- --{{ $flag }}
{{- else if eq $name "leaderElect" }}
- --no-{{ $flag }}
{{- end }}
{{- else if kindIs "slice" $value }}
{{- range $value }}
- {{ printf "--%s=%v" $flag . | quote }}
{{- end }}
{{- else if not (kindIs "invalid" $value) }}
- {{ printf "--%s=%s" $flag (ternary (printf "%d" (int64 $value)) (toString $value) (kindIs "float64" $value)) | quote }}
{{- end }}
{{- end }}
{{- range .Values.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}
