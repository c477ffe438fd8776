{{/* The pods of a Deployment. Arguments: root, component (`front`, or `worker` for the pods with devices). */}}
{{- define "ideoserve.podTemplate" -}}
{{- $root := index . 0 }}
{{- $component := index . 1 }}
{{- with $root }}
{{- $uri := .Values.model.uri }}
{{- $path := include "ideoserve.modelPath" . }}
{{- $isWorker := eq $component "worker" }}
{{- $gpus := $isWorker | ternary (int .Values.gpu.count) 0 }}
{{- $answers := eq $component (include "ideoserve.serving" .) }}
{{- $selector := dict "matchLabels" (include "ideoserve.podSelector" (list . $component) | fromYaml) }}
metadata:
  labels:
    {{- include "ideoserve.labels" . | nindent 4 }}
    app.kubernetes.io/component: {{ $component }}
    {{- with .Values.podLabels }}{{ toYaml . | nindent 4 }}{{ end }}
spec:
  serviceAccountName: {{ include "ideoserve.serviceAccountName" . }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ addf .Values.drain.preStopSeconds .Values.drain.delaySeconds .Values.settings.max_request_seconds | mulf 1.5 | ceil | int }}
  securityContext:
    runAsNonRoot: true
    {{- with .Values.podSecurityContext }}{{ toYaml . | nindent 4 }}{{ end }}
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile:
      type: RuntimeDefault
  {{- with .Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- if $isWorker }}
  {{- with .Values.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if and $gpus .Values.gpu.runtimeClassName }}
  runtimeClassName: {{ .Values.gpu.runtimeClassName }}
  {{- end }}
  {{- end }}
  {{- if or $gpus (and $isWorker .Values.tolerations) }}
  tolerations:
    {{- if $gpus }}
    - key: {{ .Values.gpu.resource }}
      operator: Exists
      effect: NoSchedule
    {{- end }}
    {{- with .Values.tolerations }}{{ toYaml . | nindent 4 }}{{ end }}
  {{- end }}
  {{- if or .Values.spread.host .Values.spread.zone }}
  topologySpreadConstraints:
    {{- range $key, $when := dict "kubernetes.io/hostname" .Values.spread.host "topology.kubernetes.io/zone" .Values.spread.zone }}
    {{- if $when }}
    - topologyKey: {{ $key }}
      maxSkew: 1
      whenUnsatisfiable: {{ $when }}
      labelSelector: {{- toYaml $selector | nindent 8 }}
    {{- end }}
    {{- end }}
  {{- end }}
  {{- if hasPrefix "init://" $uri }}
  initContainers:
    - name: weights
      image: {{ .Values.model.init.image }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      {{- with .Values.model.init.command }}
      command: {{- toYaml . | nindent 8 }}
      {{- end }}
      env:
        - name: HOME
          value: /cache
        {{- include "ideoserve.hubToken" . | nindent 8 }}
        {{- with .Values.model.init.env }}{{ toYaml . | nindent 8 }}{{ end }}
      securityContext: {{- include "ideoserve.securityContext" . | nindent 8 }}
      volumeMounts:
        - name: weights
          mountPath: /models
        - name: cache
          mountPath: /cache
        - name: tmp
          mountPath: /tmp
  {{- end }}
  containers:
    - name: server
      image: {{ include "ideoserve.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args: [--model, {{ include "ideoserve.model" . | quote }}, --host, {{ .Values.host | quote }}, --port, "8000"]
      ports:
        - name: http
          containerPort: 8000
      env:
        - name: IDEOSERVE_DRAIN_DELAY_SECONDS
          value: {{ .Values.drain.delaySeconds | quote }}
        {{- range $name, $value := include "ideoserve.settings" . | fromYaml }}
        - name: IDEOSERVE_{{ upper $name }}
          value: {{ kindIs "float64" $value | ternary (toJson $value) $value | quote }}
        {{- end }}
        {{- with .Values.model.name }}
        - name: IDEOSERVE_MODEL_NAME
          value: {{ . | quote }}
        {{- end }}
        {{- with .Values.adapters.uri }}
        - name: IDEOSERVE_ADAPTERS
          value: /adapters/{{ rest (splitList "/" (trimPrefix "pvc://" .)) | join "/" }}
        {{- end }}
        {{- with include "ideoserve.queue" . }}
        - name: IDEOSERVE_QUEUE
          value: {{ . | quote }}
        - name: IDEOSERVE_ROLE
          value: {{ $component }}
        {{- end }}
        {{- if $answers }}
        {{- if .Values.apiKeys.existingSecret }}
        - name: IDEOSERVE_API_KEYS_FILE
          value: /keys/{{ .Values.apiKeys.key }}
        {{- end }}
        {{- with .Values.store }}
        {{- if .uri }}
        - name: IDEOSERVE_STORE
          value: {{ hasPrefix "pvc://" .uri | ternary (printf "file:///store/%s" (rest (splitList "/" (trimPrefix "pvc://" .uri)) | join "/")) .uri | quote }}
        {{- end }}
        {{- if .urlSecret.existingSecret }}
        - name: IDEOSERVE_URL_SECRET
          valueFrom:
            secretKeyRef:
              name: {{ .urlSecret.existingSecret }}
              key: {{ .urlSecret.key }}
        {{- end }}
        {{- end }}
        {{- end }}
        {{- if not $isWorker }}
        {{- else if eq $gpus 0 }}
        - name: IDEOSERVE_DEVICE
          value: cpu
        {{- else if eq .Values.gpu.layout "split" }}
        - name: IDEOSERVE_DEVICES
          value: cuda:0
        - name: IDEOSERVE_UNCOND_DEVICE
          value: cuda:1
        {{- else }}
        - name: IDEOSERVE_DEVICES
          value: {{ range $index := until $gpus }}{{ if $index }},{{ end }}cuda:{{ $index }}{{ end }}
        {{- end }}
        {{- if hasPrefix "hf://" $uri }}{{ include "ideoserve.hubToken" . | nindent 8 }}{{ end }}
        {{- with .Values.env }}{{ toYaml . | nindent 8 }}{{ end }}
      resources:
        {{- $resources := $isWorker | ternary .Values.resources .Values.front.resources }}
        requests: {{- toYaml $resources.requests | nindent 10 }}
        {{- if $gpus }}
          {{ .Values.gpu.resource }}: {{ $gpus }}
        {{- end }}
        limits: {{- toYaml $resources.limits | nindent 10 }}
        {{- if $gpus }}
          {{ .Values.gpu.resource }}: {{ $gpus }}
        {{- end }}
      startupProbe:
        httpGet: {path: /healthz, port: http}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: {{ divf (include "ideoserve.startupSeconds" .) 5 | ceil | int }}
      readinessProbe:
        httpGet: {path: /readyz, port: http}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 3
      # A restart costs a model load: only a server that has not responded for a minute is restarted.
      livenessProbe:
        httpGet: {path: /healthz, port: http}
        periodSeconds: 10
        timeoutSeconds: 10
        failureThreshold: 6
      lifecycle:
        preStop:
          {{- if semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version }}
          sleep:
            seconds: {{ .Values.drain.preStopSeconds }}
          {{- else }}
          exec:
            command: [sleep, {{ .Values.drain.preStopSeconds | quote }}]
          {{- end }}
      securityContext: {{- include "ideoserve.securityContext" . | nindent 8 }}
      volumeMounts:
        - name: cache
          mountPath: /cache
        - name: tmp
          mountPath: /tmp
        {{- if $isWorker }}
        - name: shm
          mountPath: /dev/shm
        {{- end }}
        {{- if and $answers .Values.apiKeys.existingSecret }}
        - name: keys
          mountPath: /keys
          readOnly: true
        {{- end }}
        {{- if and $answers (hasPrefix "pvc://" .Values.store.uri) }}
        - name: store
          mountPath: /store
        {{- end }}
        {{- if .Values.adapters.uri }}
        - name: adapters
          mountPath: /adapters
          readOnly: true
        {{- end }}
        {{- range .Values.secrets }}
        - name: secret-{{ . }}
          mountPath: /secrets/{{ . }}
          readOnly: true
        {{- end }}
        {{- if not (or (eq $uri "demo") (hasPrefix "hf://" $uri)) }}
        - name: weights
          mountPath: /models
          readOnly: true
        {{- end }}
  volumes:
    - name: cache
      {{- if .Values.cache.existingClaim }}
      persistentVolumeClaim:
        claimName: {{ .Values.cache.existingClaim }}
      {{- else }}
      emptyDir:
        sizeLimit: {{ .Values.cache.sizeLimit }}
      {{- end }}
    - name: tmp
      emptyDir:
        sizeLimit: 1Gi
    {{- if $isWorker }}
    - name: shm
      emptyDir:
        medium: Memory
        sizeLimit: {{ .Values.gpu.shmSize }}
    {{- end }}
    {{- if and $answers .Values.apiKeys.existingSecret }}
    - name: keys
      secret:
        secretName: {{ .Values.apiKeys.existingSecret }}
        defaultMode: 0440
    {{- end }}
    {{- if and $answers (hasPrefix "pvc://" .Values.store.uri) }}
    - name: store
      persistentVolumeClaim:
        claimName: {{ first (splitList "/" (trimPrefix "pvc://" .Values.store.uri)) }}
    {{- end }}
    {{- with .Values.adapters.uri }}
    - name: adapters
      persistentVolumeClaim:
        claimName: {{ first (splitList "/" (trimPrefix "pvc://" .)) }}
        readOnly: true
    {{- end }}
    {{- range .Values.secrets }}
    - name: secret-{{ . }}
      secret:
        secretName: {{ . }}
        defaultMode: 0440
    {{- end }}
    {{- if hasPrefix "pvc://" $uri }}
    - name: weights
      persistentVolumeClaim:
        claimName: {{ first (splitList "/" $path) }}
        readOnly: true
    {{- else if hasPrefix "oci://" $uri }}
    - name: weights
      image:
        reference: {{ $path }}
        pullPolicy: {{ .Values.image.pullPolicy }}
    {{- else if hasPrefix "init://" $uri }}
    - name: weights
      emptyDir:
        sizeLimit: {{ .Values.cache.sizeLimit }}
    {{- end }}
{{- end }}
{{- end }}
