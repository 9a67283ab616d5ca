{{- /* Name and namespace are in every EnvoyFilter, so neither depends on the release's. */}}
{{- define "wasmer.name" -}}
{{ .Values.fullnameOverride | default .Values.nameOverride | default .Values.name }}
{{- end }}

{{- define "wasmer.namespace" -}}
{{ .Values.namespaceOverride | default .Values.namespace }}
{{- end }}

{{- define "wasmer.selector" -}}
app.kubernetes.io/name: {{ include "wasmer.name" . }}
{{- end }}

{{- /*
metadata of an object. root: $. Optional: name, or suffix of the usual name; namespace; cluster: true for an object without one;
app: value of the labels app and app.kubernetes.io/name; labels, annotations: additional ones, which take precedence over the common ones.
*/}}
{{- define "wasmer.metadata" -}}
{{- $root := .root }}
{{- $name := include "wasmer.name" $root }}
{{- $app := .app | default $name }}
{{- $labels := dict "app" $app "app.kubernetes.io/name" $app "app.kubernetes.io/part-of" "autowasm" }}
{{- $_ := set $labels "app.kubernetes.io/instance" $root.Release.Name }}
{{- $_ := set $labels "app.kubernetes.io/version" $root.Chart.AppVersion }}
{{- $_ := set $labels "app.kubernetes.io/managed-by" $root.Release.Service }}
{{- $_ := set $labels "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_") }}
{{- $annotations := merge (dict) (.annotations | default dict) $root.Values.commonAnnotations -}}
name: {{ .name | default (printf "%s%s" $name (.suffix | default "")) }}
{{- if not .cluster }}
namespace: {{ .namespace | default (include "wasmer.namespace" $root) }}
{{- end }}
labels:
  {{- merge $labels (.labels | default dict) $root.Values.commonLabels | toYaml | nindent 2 }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* The pull secrets in the values, and in the parent chart's global: objects with a name, or only the name. */}}
{{- define "wasmer.imagePullSecrets" -}}
{{- $found := .Values.imagePullSecrets }}
{{- range (.Values.global | default dict).imagePullSecrets }}
{{- $found = append $found (ternary (dict "name" .) . (kindIs "string" .)) }}
{{- end }}
{{- with uniq $found }}
{{- toYaml . }}
{{- end }}
{{- end }}

{{- define "wasmer.account" -}}
{{ .Values.serviceAccount.name | default (include "wasmer.name" .) }}
{{- end }}

{{- define "wasmer.subject" -}}
- kind: ServiceAccount
  name: {{ include "wasmer.account" . }}
  namespace: {{ include "wasmer.namespace" . }}
{{- end }}

{{- /* Fields of a Service. */}}
{{- define "wasmer.ipFamilies" -}}
{{- with .Values.service.ipFamilyPolicy }}
ipFamilyPolicy: {{ . }}
{{- end }}
{{- with .Values.service.ipFamilies }}
ipFamilies:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "wasmer.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest }}{{ printf "%s@%s" $image.repository $image.digest }}
{{- else }}{{ printf "%s:%s" $image.repository ($image.tag | default .Chart.AppVersion) }}{{ end }}
{{- end }}

{{- /* [., a securityContext]. seccompProfile exists since Kubernetes 1.19; Helm refuses fields that the API server does not know. */}}
{{- define "wasmer.securityContext" -}}
{{- $context := index . 1 }}
{{- if and (kindIs "map" $context) (semverCompare "<1.19.0-0" (index . 0).Capabilities.KubeVersion.Version) }}
{{- $context = omit $context "seccompProfile" }}
{{- end }}
{{- toYaml $context }}
{{- end }}

{{- define "wasmer.priorityClass" -}}
{{ .Values.priorityClassName | default (ternary (include "wasmer.name" .) "" .Values.priorityClass.create) }}
{{- end }}

{{- define "wasmer.policyMap" -}}
{{ .Values.policy.configMap | default (ternary (printf "%s-policy" (include "wasmer.name" .)) "" (not (empty .Values.policy.namespaces))) }}
{{- end }}

{{- /* Checks that the schema cannot express. */ -}}
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
{{- $name := include "wasmer.name" . }}
{{- $namespace := include "wasmer.namespace" . }}
{{- with .Values }}
{{- if ne $name "wasmer" }}
- --service-name={{ $name }}
- --peers-service={{ $name }}-peers
- --lease-name={{ $name }}
{{- end }}
{{- if ne $namespace "istio-system" }}
- --service-namespace={{ $namespace }}
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
