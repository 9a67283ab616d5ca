{{- define "wasmer.volumes" -}}
{{- if not .Values.cache.persistent }}
- name: cache
  emptyDir:
    # More than --disk-budget (4Gi) plus the files that 32 fetches stage (3Gi): a Pod with a full emptyDir is evicted.
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
