{{/* URLs of the NATS servers: existing ones, or those of this release. Empty without a queue. */}}
{{- define "ideoserve.queue" -}}
{{- if and .Values.nats.enabled .Values.queue.url }}
{{- fail "queue.url and nats.enabled exclude each other: leave queue.url empty to use the NATS servers of this release" }}
{{- end }}
{{- if .Values.nats.enabled }}{{ include "ideoserve.natsUrl" .Subcharts.nats }}{{ else }}{{ .Values.queue.url }}{{ end }}
{{- end }}

{{/* URL of the Service of the NATS chart. Argument: the root of that chart. */}}
{{- define "ideoserve.natsUrl" -}}
{{- $scheme := .Values.config.nats.tls.enabled | ternary "tls" "nats" -}}
{{ $scheme }}://{{ .Values.service.name | default (include "nats.fullname" .) }}:{{ .Values.config.nats.port }}
{{- end }}

{{/* Monitoring address of NATS for KEDA, which runs in another namespace. */}}
{{- define "ideoserve.natsMonitoring" -}}
{{- if or .Values.autoscaling.keda.nats.monitoring (not .Values.nats.enabled) }}
{{- .Values.autoscaling.keda.nats.monitoring }}
{{- else }}
{{- with .Subcharts.nats }}
{{- .Values.headlessService.name | default (printf "%s-headless" (include "nats.fullname" .)) }}.{{ .Release.Namespace }}:{{ .Values.config.monitor.port }}
{{- end }}
{{- end }}
{{- end }}

{{/* The server settings. With NATS in the release, as many servers store each message as there are, at most 3. */}}
{{- define "ideoserve.settings" -}}
{{- $settings := .Values.settings }}
{{- if .Values.nats.enabled }}
{{- $servers := .Values.nats.config.cluster.enabled | ternary .Values.nats.config.cluster.replicas 1 | int }}
{{- $settings = set (deepCopy $settings) "queue_replicas" ($settings.queue_replicas | default (min 3 $servers)) }}
{{- if gt (int $settings.queue_replicas) $servers }}
{{- fail (printf "settings.queue_replicas is %d, but nats.config.cluster has %d NATS servers" (int $settings.queue_replicas) $servers) }}
{{- end }}
{{- end }}
{{- toYaml $settings }}
{{- end }}
