{{/*
The objects of a room, one helper per kind; templates/ROOM/*.yaml name the room and nothing else, so that the four stay
alike. Every helper takes `root` and `room`.
*/}}

{{/*
What a room's processes hold (JSON list of words, see _settings.tpl). Objects: who reads or writes blobs; the audit room,
the API of render and the worker of grading never do. The API tells the depth of the queues, so it asks the management.
*/}}
{{- define "korrigo.roomNeeds" -}}
{{- $needs := list "database" "broker" "rpc" "public-keys" -}}
{{- if or (eq .room "ingest") (and (eq .room "grading") (not .worker)) (and (eq .room "render") .worker) -}}
{{- $needs = append $needs "objects" -}}
{{- end -}}
{{- if not .worker }}{{- $needs = append $needs "management" -}}{{- end -}}
{{- if and (eq .room "grading") (not .worker) }}{{- $needs = append $needs "signing-key" -}}
{{- if .root.Values.monitoring.alertmanager.enabled }}{{- $needs = append $needs "alerts-token" -}}{{- end -}}
{{- end -}}
{{- toJson $needs -}}
{{- end -}}

{{- define "korrigo.room.api" -}}
{{- $options := (get .root.Values .room).api -}}
{{- $needs := include "korrigo.roomNeeds" . | fromJsonArray -}}
{{- $context := dict "root" .root "room" .room "component" .room "options" $options "needs" $needs "spread" true "tmpSize" $options.tmpSize -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "korrigo.metadata" $context | nindent 2 }}
spec:
  {{- if not $options.autoscaling.enabled }}
  replicas: {{ $options.replicas }}
  {{- end }}
  revisionHistoryLimit: 5
  strategy:
    rollingUpdate:
      maxSurge: 1
      maxUnavailable: 0
  selector:
    matchLabels:
      {{- include "korrigo.selector" $context | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "korrigo.podLabels" $context | nindent 8 }}
      {{- include "korrigo.podAnnotations" $context | nindent 6 }}
    spec:
      {{- include "korrigo.podSpec" $context | nindent 6 }}
      # 5 s until no gateway sends here any more, 10 s for open requests, 5 s for calls, 20 s for relay and sweeper.
      terminationGracePeriodSeconds: {{ $options.terminationGracePeriodSeconds }}
      containers:
        - name: {{ .room }}
          image: {{ include "korrigo.image" (dict "root" .root "program" .room) }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          args: [korrigo, run, {{ .room }}]
          env:
            {{- include "korrigo.environment" $context | nindent 12 }}
            {{- include "korrigo.listening" $context | nindent 12 }}
            - name: KORRIGO_HTTP__PORT
              value: "8080"
            - name: KORRIGO_RPC__LISTEN
              value: {{ printf "%s:9090" (ternary "[::]" .root.Values.http.host (contains ":" .root.Values.http.host)) | quote }}
            {{- include "korrigo.extraEnv" $context | nindent 12 }}
          ports:
            - name: http
              containerPort: 8080
            - name: grpc
              containerPort: 9090
          # A start with a cold page cache takes seconds, on a crowded node a minute.
          startupProbe:
            httpGet:
              path: /api/health/live
              port: http
            periodSeconds: 2
            timeoutSeconds: 5
            failureThreshold: 90
          livenessProbe:
            httpGet:
              path: /api/health/live
              port: http
            periodSeconds: 10
            timeoutSeconds: 10
            failureThreshold: 6
          # Database and schema only: a broker, store or peer that is away takes no room out of service.
          readinessProbe:
            httpGet:
              path: /api/health/ready
              port: http
            periodSeconds: 5
            timeoutSeconds: 10
            failureThreshold: 3
          lifecycle:
            preStop:
              sleep:
                seconds: 5
          resources:
            {{- toYaml $options.resources | nindent 12 }}
          {{- include "korrigo.containerSecurity" . | nindent 10 }}
          volumeMounts:
            {{- include "korrigo.volumeMounts" $context | nindent 12 }}
      volumes:
        {{- include "korrigo.volumes" $context | nindent 8 }}
{{- end -}}

{{- define "korrigo.room.worker" -}}
{{- $options := (get .root.Values .room).worker -}}
{{- $component := printf "%s-worker" .room -}}
{{- $needs := include "korrigo.roomNeeds" (dict "root" .root "room" .room "worker" true) | fromJsonArray -}}
{{- $context := dict "root" .root "room" .room "component" $component "options" $options "needs" $needs "spread" true "tmpSize" $options.tmpSize -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "korrigo.metadata" $context | nindent 2 }}
spec:
  {{- if not $options.keda.enabled }}
  replicas: {{ $options.replicas }}
  {{- end }}
  revisionHistoryLimit: 5
  strategy:
    rollingUpdate:
      maxSurge: 1
      maxUnavailable: 0
  selector:
    matchLabels:
      {{- include "korrigo.selector" $context | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "korrigo.podLabels" $context | nindent 8 }}
      {{- include "korrigo.podAnnotations" $context | nindent 6 }}
    spec:
      {{- include "korrigo.podSpec" $context | nindent 6 }}
      # The worker ends its running jobs for 30 s; what is not done by then is taken up by another as after any loss.
      terminationGracePeriodSeconds: {{ $options.terminationGracePeriodSeconds }}
      containers:
        - name: worker
          image: {{ include "korrigo.image" (dict "root" .root "program" .room) }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          args: [korrigo, work, {{ .room }}]
          env:
            {{- include "korrigo.environment" $context | nindent 12 }}
            {{- include "korrigo.listening" $context | nindent 12 }}
            - name: KORRIGO_HTTP__METRICS_PORT
              value: "9100"
            - name: KORRIGO_JOBS__CONCURRENCY
              value: {{ $options.concurrency | quote }}
            {{- include "korrigo.extraEnv" $context | nindent 12 }}
          ports:
            - name: metrics
              containerPort: 9100
          startupProbe:
            httpGet:
              path: /api/health/ready
              port: metrics
            periodSeconds: 2
            timeoutSeconds: 5
            failureThreshold: 90
          # Fails when a thread of the worker ended or stands still; a pool that claims nothing ends the process itself.
          livenessProbe:
            httpGet:
              path: /api/health/live
              port: metrics
            periodSeconds: 10
            timeoutSeconds: 10
            failureThreshold: 6
          readinessProbe:
            httpGet:
              path: /api/health/ready
              port: metrics
            periodSeconds: 5
            timeoutSeconds: 10
            failureThreshold: 3
          resources:
            {{- toYaml $options.resources | nindent 12 }}
          {{- include "korrigo.containerSecurity" . | nindent 10 }}
          volumeMounts:
            {{- include "korrigo.volumeMounts" $context | nindent 12 }}
      volumes:
        {{- include "korrigo.volumes" $context | nindent 8 }}
{{- end -}}

{{/* One Service for people and peers. gRPC needs no headless one: callers come back every 5 minutes and are shared out. */}}
{{- define "korrigo.room.service" -}}
{{- $context := dict "root" .root "component" .room -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "korrigo.metadata" $context | nindent 2 }}
spec:
  type: ClusterIP
  selector:
    {{- include "korrigo.selector" $context | nindent 4 }}
  ports:
    - name: http
      port: 8080
      targetPort: http
      appProtocol: http
    - name: grpc
      port: 9090
      targetPort: grpc
      appProtocol: kubernetes.io/h2c
{{- end -}}

{{/* `part` is api or worker. Room for one pod at a time, also where there is only one: a drain must be able to end. */}}
{{- define "korrigo.room.pdb" -}}
{{- $options := get (get .root.Values .room) .part -}}
{{- $component := ternary .room (printf "%s-worker" .room) (eq .part "api") -}}
{{- $context := dict "root" .root "component" $component -}}
{{- if $options.podDisruptionBudget.enabled -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "korrigo.metadata" $context | nindent 2 }}
spec:
  maxUnavailable: {{ $options.podDisruptionBudget.maxUnavailable }}
  # A pod that is not ready serves nobody: it may always go.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "korrigo.selector" $context | nindent 6 }}
{{- end -}}
{{- end -}}

{{- define "korrigo.room.hpa" -}}
{{- $options := (get .root.Values .room).api -}}
{{- $context := dict "root" .root "component" .room -}}
{{- with $options.autoscaling -}}
{{- if .enabled -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  {{- include "korrigo.metadata" $context | nindent 2 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ include "korrigo.fullname" $context }}-{{ $context.component }}
  minReplicas: {{ .minReplicas }}
  maxReplicas: {{ .maxReplicas }}
  metrics:
    - type: Resource
      resource:
        name: cpu
        target:
          type: Utilization
          averageUtilization: {{ .targetCPUUtilizationPercentage }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
Workers follow the bells of their room: the row in the database is the job, but a bell rings for each that is due. Grading
and audit do no jobs: theirs follow the events that they hear.
*/}}
{{- define "korrigo.room.scaledobject" -}}
{{- $options := (get .root.Values .room).worker -}}
{{- $context := dict "root" .root "component" (printf "%s-worker" .room) -}}
{{- $room := .room -}}
{{- $root := .root -}}
{{- with $options.keda -}}
{{- if .enabled -}}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  {{- include "korrigo.metadata" $context | nindent 2 }}
spec:
  scaleTargetRef:
    name: {{ include "korrigo.fullname" $context }}-{{ $context.component }}
  pollingInterval: {{ .pollingIntervalSeconds }}
  cooldownPeriod: {{ .cooldownSeconds }}
  # Never 0: a worker also applies the events of the other rooms.
  minReplicaCount: {{ .minReplicas }}
  maxReplicaCount: {{ .maxReplicas }}
  triggers:
    - type: rabbitmq
      metadata:
        protocol: amqp
        queueName: {{ ternary "jobs" "events" (has $room (list "ingest" "render")) }}.{{ $room }}
        mode: QueueLength
        value: {{ .queueLength | quote }}
      authenticationRef:
        name: {{ include "korrigo.fullname" $context }}-{{ $context.component }}
---
apiVersion: keda.sh/v1alpha1
kind: TriggerAuthentication
metadata:
  {{- include "korrigo.metadata" $context | nindent 2 }}
spec:
  secretTargetRef:
    - parameter: host
      name: {{ $root.Values.rabbitmq.existingSecret }}
      key: {{ $root.Values.rabbitmq.urlKey }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "korrigo.room.servicemonitor" -}}
{{- if .root.Values.monitoring.serviceMonitors.enabled -}}
{{- $context := dict "root" .root "component" .room "labels" .root.Values.monitoring.labels -}}
apiVersion: monitoring.coreos.com/v1
kind: ServiceMonitor
metadata:
  {{- include "korrigo.metadata" $context | nindent 2 }}
spec:
  # `job` of the series is the component: the alerts know it by that name.
  jobLabel: app.kubernetes.io/component
  selector:
    matchLabels:
      {{- include "korrigo.selector" $context | nindent 6 }}
  endpoints:
    - port: http
      path: /metrics
      interval: {{ .root.Values.monitoring.scrapeInterval }}
      scrapeTimeout: {{ .root.Values.monitoring.scrapeTimeout }}
{{- end -}}
{{- end -}}

{{- define "korrigo.room.podmonitor" -}}
{{- if .root.Values.monitoring.podMonitors.enabled -}}
{{- $context := dict "root" .root "component" (printf "%s-worker" .room) "labels" .root.Values.monitoring.labels -}}
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata:
  {{- include "korrigo.metadata" $context | nindent 2 }}
spec:
  jobLabel: app.kubernetes.io/component
  selector:
    matchLabels:
      {{- include "korrigo.selector" $context | nindent 6 }}
  podMetricsEndpoints:
    - port: metrics
      path: /metrics
      interval: {{ .root.Values.monitoring.scrapeInterval }}
      scrapeTimeout: {{ .root.Values.monitoring.scrapeTimeout }}
{{- end -}}
{{- end -}}
