{{- /*
A Job of a hook that runs a command of wasmer, with the right to list AutoWasms. root: $; hook: the hook; name: of all objects;
helm shows it if the command fails; command and args: of wasmer.
*/}}
{{- define "wasmer.hook" -}}
{{- $root := .root }}
{{- $name := .name }}
{{- range $kind := list "ServiceAccount" "ClusterRole" "ClusterRoleBinding" "Job" }}
---
apiVersion: {{ get (dict "ServiceAccount" "v1" "Job" "batch/v1") $kind | default "rbac.authorization.k8s.io/v1" }}
kind: {{ $kind }}
metadata:
  {{- $weight := ternary "0" "-1" (eq $kind "Job") }}
  {{- /* After a failure they stay until the next attempt, with the log of the Job's Pod. */}}
  {{- $annotations := dict "helm.sh/hook" $.hook "helm.sh/hook-weight" $weight "helm.sh/hook-delete-policy" "before-hook-creation,hook-succeeded" }}
  {{- /* app differs from the Service's: otherwise the Service would route sidecars to the Job. */}}
  {{- include "wasmer.metadata" (dict "root" $root "name" $name "app" $name "cluster" (hasPrefix "ClusterRole" $kind) "annotations" $annotations) | nindent 2 }}
{{- if eq $kind "ServiceAccount" }}
automountServiceAccountToken: false
{{- with include "wasmer.imagePullSecrets" $root }}
imagePullSecrets:
  {{- . | nindent 2 }}
{{- end }}
{{- else if eq $kind "ClusterRole" }}
rules:
  - apiGroups: [wasm.tcm.io]
    resources: [autowasms]
    verbs: [list]
{{- else if eq $kind "ClusterRoleBinding" }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ $name }}
subjects:
  - kind: ServiceAccount
    name: {{ $name }}
    namespace: {{ include "wasmer.namespace" $root }}
{{- else }}
spec:
  backoffLimit: 0 # a retry would fail, too
  activeDeadlineSeconds: 240
  template:
    metadata:
      labels:
        app: {{ $name }}
        app.kubernetes.io/name: {{ $name }}
        app.kubernetes.io/part-of: autowasm
        sidecar.istio.io/inject: "false"
        istio.io/dataplane-mode: none
        {{- with omit $root.Values.commonLabels "app" "app.kubernetes.io/name" "app.kubernetes.io/part-of" }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      annotations:
        sidecar.istio.io/inject: "false"
    spec:
      restartPolicy: Never
      serviceAccountName: {{ $name }}
      automountServiceAccountToken: true
      enableServiceLinks: false
      {{- with include "wasmer.imagePullSecrets" $root }}
      imagePullSecrets:
        {{- . | nindent 8 }}
      {{- end }}
      {{- with $root.Values.runtimeClassName }}
      runtimeClassName: {{ . }}
      {{- end }}
      {{- with $root.Values.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $root.Values.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext:
        {{- include "wasmer.securityContext" (list $root $root.Values.podSecurityContext) | nindent 8 }}
      containers:
        - name: {{ $.command }}
          image: {{ include "wasmer.image" $root }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          args:
            - {{ $.command }}
            {{- range $.args }}
            - {{ . }}
            {{- end }}
          terminationMessagePolicy: FallbackToLogsOnError
          resources:
            requests: {cpu: 10m, memory: 64Mi}
            limits: {memory: 256Mi}
          securityContext:
            {{- include "wasmer.securityContext" (list $root $root.Values.securityContext) | nindent 12 }}
{{- end }}
{{- end }}
{{- end }}
