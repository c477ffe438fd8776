{{- define "ideoserve.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-{{ .Chart.Name }}{{ end }}
{{- end }}

{{- define "ideoserve.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
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

{{- define "ideoserve.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* The part of model.uri after its scheme. */}}
{{- define "ideoserve.modelPath" -}}
{{- last (splitList "://" .Values.model.uri) }}
{{- end }}

{{/* What --model is given. */}}
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

{{/* "auto" is where the cluster has the API. Arguments: value, API, root. */}}
{{- define "ideoserve.enabled" -}}
{{- $value := index . 0 }}
{{- if eq (toString $value) "auto" }}{{ if (index . 2).Capabilities.APIVersions.Has (index . 1) }}true{{ end }}
{{- else if $value }}true{{ end }}
{{- end }}

{{/* GPU workers of a pod, each of which reports its own device. */}}
{{- define "ideoserve.workers" -}}
{{- eq .Values.gpu.layout "split" | ternary 1 (max 1 .Values.gpu.count) }}
{{- end }}

{{/* Whether there may be no pod, on purpose. */}}
{{- define "ideoserve.sleeps" -}}
{{- with .Values.autoscaling }}{{ if and (eq .kind "keda") (eq (int .minReplicas) 0) }}true{{ end }}{{ end }}
{{- end }}

{{/* Seconds after which a route may give up: a request's deadline, and time to send the answer. */}}
{{- define "ideoserve.routeSeconds" -}}
{{- add (ceil .Values.settings.max_request_seconds) 30 }}
{{- end }}

{{/* Labels that ServiceMonitor gives the metrics of this release. */}}
{{- define "ideoserve.series" -}}
namespace="{{ .Release.Namespace }}",job="{{ include "ideoserve.fullname" . }}"
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
