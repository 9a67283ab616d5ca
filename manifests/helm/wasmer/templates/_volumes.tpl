{{- define "wasmer.volumes" -}}
{{- if not .Values.cache.persistent }}
- name: cache
  emptyDir:
    # More than --disk-budget (4Gi) and what 32 fetches may stage meanwhile (3Gi): a full emptyDir evicts the Pod.
    sizeLimit: {{ .Values.cache.size }}
{{- end }}
{{- range $index, $ca := .Values.registryCa }}
- name: registry-ca-{{ $index }}
  {{- if $ca.secret }}
  secret:
    secretName: {{ $ca.secret }}
  {{- else }}
  configMap:
    name: {{ $ca.configMap | default (printf "%s-registry-ca-%d" (include "wasmer.name" $) $index) }}
  {{- end }}
{{- end }}
{{- with include "wasmer.policyMap" . }}
- name: policy
  configMap:
    name: {{ . }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
