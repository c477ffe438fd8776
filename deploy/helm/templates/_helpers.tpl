{{- define "ideoserve.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-{{ .Chart.Name }}{{ end }}
{{- end }}

{{- define "ideoserve.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Labels that select the pods of a component. Arguments: root, component. */}}
{{- define "ideoserve.podSelector" -}}
{{ include "ideoserve.selector" (index . 0) }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* The component that serves the API. */}}
{{- define "ideoserve.serving" -}}
{{ empty (include "ideoserve.queue" .) | ternary "worker" "front" }}
{{- end }}

{{- define "ideoserve.labels" -}}
{{ include "ideoserve.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "ideoserve.metadata" -}}
name: {{ include "ideoserve.fullname" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "ideoserve.labels" . | nindent 2 }}
{{- end }}

{{- define "ideoserve.frontMetadata" -}}
name: {{ include "ideoserve.fullname" . }}-front
namespace: {{ .Release.Namespace }}
labels:
  {{- include "ideoserve.labels" . | nindent 2 }}
{{- end }}

{{- define "ideoserve.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* The part of model.uri after its scheme. */}}
{{- define "ideoserve.modelPath" -}}
{{- last (splitList "://" .Values.model.uri) }}
{{- end }}

{{/* The value of --model. */}}
{{- define "ideoserve.model" -}}
{{- $uri := .Values.model.uri }}
{{- $path := include "ideoserve.modelPath" . }}
{{- if eq $uri "demo" }}models/demo
{{- else if hasPrefix "hf://" $uri }}{{ $path }}
{{- else if hasPrefix "pvc://" $uri }}/models/{{ rest (splitList "/" $path) | join "/" }}
{{- else if hasPrefix "oci://" $uri }}/models
{{- else }}/models/{{ $path }}
{{- end }}
{{- end }}

{{/* Resolves true, false, or "auto" (if the cluster has the API). Arguments: value, API, root. */}}
{{- define "ideoserve.enabled" -}}
{{- $value := index . 0 }}
{{- if eq (toString $value) "auto" }}{{ if (index . 2).Capabilities.APIVersions.Has (index . 1) }}true{{ end }}
{{- else if $value }}true{{ end }}
{{- end }}

{{/* Number of workers per pod. Each reports the memory of its main device. */}}
{{- define "ideoserve.workers" -}}
{{- eq .Values.gpu.layout "split" | ternary 1 (max 1 .Values.gpu.count) }}
{{- end }}

{{/* True if the autoscaler may scale to zero. */}}
{{- define "ideoserve.sleeps" -}}
{{- with .Values.autoscaling }}{{ if and (eq .kind "keda") (eq (int .minReplicas) 0) }}true{{ end }}{{ end }}
{{- end }}

{{/* Route timeout in seconds: the maximum deadline of a request, plus time to send the response. */}}
{{- define "ideoserve.routeSeconds" -}}
{{- add (ceil .Values.settings.max_request_seconds) 30 }}
{{- end }}

{{- define "ideoserve.serviceAccountName" -}}
{{- with .Values.serviceAccount }}{{ .name | default (.create | ternary (include "ideoserve.fullname" $) "default") }}{{ end }}
{{- end }}

{{/* Maximum seconds until /healthz responds. Init containers run before the startup probe. */}}
{{- define "ideoserve.startupSeconds" -}}
{{- add .Values.startupSeconds (hasPrefix "hf://" .Values.model.uri | ternary .Values.model.downloadSeconds 0) }}
{{- end }}

{{/* Seconds without progress after which a rollout fails. */}}
{{- define "ideoserve.progressSeconds" -}}
{{- $downloads := or (hasPrefix "hf://" .Values.model.uri) (hasPrefix "init://" .Values.model.uri) }}
{{- add .Values.rollout.progressDeadlineSeconds ($downloads | ternary .Values.model.downloadSeconds 0) }}
{{- end }}

{{/* Labels that the ServiceMonitor adds to the metrics of this release. */}}
{{- define "ideoserve.series" -}}
namespace="{{ .Release.Namespace }}",job="{{ include "ideoserve.fullname" . }}"
{{- end }}

{{/* Of the pods with devices. */}}
{{- define "ideoserve.workerSeries" -}}
{{ include "ideoserve.series" . }}{{ if include "ideoserve.queue" . }},component="worker"{{ end }}
{{- end }}

{{/* Of the pods that serve the API. */}}
{{- define "ideoserve.servingSeries" -}}
{{ include "ideoserve.series" . }}{{ if include "ideoserve.queue" . }},component="front"{{ end }}
{{- end }}

{{/* Name of the durable consumer of a priority, as server/queue/names.py makes it. Arguments: root, priority. */}}
{{- define "ideoserve.consumer" -}}
{{- $name := (index . 0).Values.model.name }}
{{- if not (regexMatch "^[A-Za-z0-9_-]{1,64}$" $name) }}
{{- $name = printf "%s-%s" (regexReplaceAll "[^A-Za-z0-9_-]" $name "_" | trunc 64) (sha256sum $name | trunc 16) }}
{{- end }}
{{- $name }}-{{ index . 1 }}
{{- end }}

{{- define "ideoserve.hubToken" -}}
{{- with .Values.model.token }}
{{- if .existingSecret }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ .existingSecret }}
      key: {{ .key }}
{{- end }}
{{- end }}
{{- end }}

{{- define "ideoserve.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}
