{{/*
Who may speak to whom: default-deny for every pod of the release, then one policy per component. Ingress and egress of
a connection between components are both made from the one table below, so that they cannot disagree.
*/}}

{{/* Component -> rooms whose gRPC it calls (peers.py and consumer.py of the rooms, readiness; operator; people). */}}
{{- define "korrigo.calls" -}}
ingest: [grading, render, audit]
grading: [ingest, render, audit]
render: [ingest, grading, audit]
audit: [ingest, grading, render]
ingest-worker: [grading]
grading-worker: [ingest, render]
render-worker: [grading]
audit-worker: [ingest, grading, render]
operator: [ingest, grading, render, audit]
monitoring: [ingest, grading, render, audit]
{{- end -}}

{{- define "korrigo.policyPorts" -}}
{{- $protocols := .protocols | default (list "TCP") -}}
{{- range $port := .ports }}
{{- range $protocol := $protocols }}
- port: {{ $port }}
  protocol: {{ $protocol }}
{{- end }}
{{- end }}
{{- end -}}

{{/* A rule to (or from) what lies outside of the chart: `direction` to|from, `way` {ports, peers}; no peers = anywhere. */}}
{{- define "korrigo.policyRule" -}}
- ports:
    {{- include "korrigo.policyPorts" . | nindent 4 }}
  {{- with .peers }}
  {{ $.direction }}:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* Egress to each of the `reaches`: keys of networkPolicy.egress. */}}
{{- define "korrigo.egress" -}}
{{- $ways := .root.Values.networkPolicy.egress -}}
{{ include "korrigo.policyRule" (dict "direction" "to" "ports" $ways.dns.ports "protocols" (list "UDP" "TCP") "peers" $ways.dns.to) }}
{{- $reaches := .reaches }}
{{- if and (has "objectStore" $reaches) (not .root.Values.objectStore.existingSecret) }}{{ $reaches = append $reaches "cloudIdentity" }}{{ end }}
{{- range $reaches }}
{{- $way := get $ways . }}
{{ include "korrigo.policyRule" (dict "direction" "to" "ports" $way.ports "peers" $way.to) }}
{{- end }}
{{- if and .root.Values.otel.endpoint .traces }}
{{ include "korrigo.policyRule" (dict "direction" "to" "ports" $ways.otel.ports "peers" $ways.otel.to) }}
{{- end }}
{{- $context := . }}
{{- range get (include "korrigo.calls" . | fromYaml) .component | default list }}
- ports:
    - port: 9090
      protocol: TCP
  to:
    - podSelector:
        matchLabels:
          {{- include "korrigo.selector" (dict "root" $context.root "component" .) | nindent 10 }}
{{- end }}
{{- range .visits | default list }}
- ports:
    - port: 8080
      protocol: TCP
  to:
    - podSelector:
        matchLabels:
          {{- include "korrigo.selector" (dict "root" $context.root "component" .) | nindent 10 }}
{{- end }}
{{- end -}}

{{/* Rooms that answer people, and whom besides the gateway their http port lets in. */}}
{{- define "korrigo.policy.room" -}}
{{- if .root.Values.networkPolicy.enabled -}}
{{- $policy := .root.Values.networkPolicy -}}
{{- $context := dict "root" .root "component" .room -}}
{{- $needs := include "korrigo.roomNeeds" . | fromJsonArray -}}
{{- $public := not (eq .room "render") -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- include "korrigo.metadata" $context | nindent 2 }}
spec:
  podSelector:
    matchLabels:
      {{- include "korrigo.selector" $context | nindent 6 }}
  policyTypes: [Ingress, Egress]
  ingress:
    {{- if $public }}
    {{- include "korrigo.policyRule" (dict "direction" "from" "ports" (list 8080) "peers" $policy.ingress.gateway.from) | nindent 4 }}
    - ports:
        - port: 8080
          protocol: TCP
      from:
        # `helm test`
        - podSelector:
            matchLabels:
              {{- include "korrigo.selector" (dict "root" .root "component" "gateway") | nindent 14 }}
    {{- end }}
    {{- include "korrigo.policyRule" (dict "direction" "from" "ports" (list 8080) "peers" $policy.ingress.prometheus.from) | nindent 4 }}
    {{- if eq .room "grading" }}
    {{- include "korrigo.policyRule" (dict "direction" "from" "ports" (list 8080) "peers" $policy.ingress.alertmanager.from) | nindent 4 }}
    - ports:
        - port: 8080
          protocol: TCP
      from:
        # `korrigo doctor`
        - podSelector:
            matchLabels:
              {{- include "korrigo.selector" (dict "root" .root "component" "monitoring") | nindent 14 }}
    {{- end }}
    - ports:
        - port: 9090
          protocol: TCP
      from:
        {{- $room := .room }}
        {{- range $caller, $called := include "korrigo.calls" . | fromYaml }}
        {{- if has $room $called }}
        - podSelector:
            matchLabels:
              {{- include "korrigo.selector" (dict "root" $.root "component" $caller) | nindent 14 }}
        {{- end }}
        {{- end }}
  egress:
    {{- $reaches := list "postgresql" "rabbitmq" }}
    {{- if .root.Values.rabbitmq.managementUrlKey }}{{ $reaches = append $reaches "rabbitmqManagement" }}{{ end }}
    {{- if has "objects" $needs }}{{ $reaches = append $reaches "objectStore" }}{{ end }}
    {{- include "korrigo.egress" (mergeOverwrite (dict "reaches" $reaches "traces" true) $context) | nindent 4 }}
{{- end -}}
{{- end -}}

{{- define "korrigo.policy.worker" -}}
{{- if .root.Values.networkPolicy.enabled -}}
{{- $context := dict "root" .root "component" (printf "%s-worker" .room) -}}
{{- $needs := include "korrigo.roomNeeds" (dict "root" .root "room" .room "worker" true) | fromJsonArray -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- include "korrigo.metadata" $context | nindent 2 }}
spec:
  podSelector:
    matchLabels:
      {{- include "korrigo.selector" $context | nindent 6 }}
  policyTypes: [Ingress, Egress]
  ingress:
    {{- include "korrigo.policyRule" (dict "direction" "from" "ports" (list 9100) "peers" .root.Values.networkPolicy.ingress.prometheus.from) | nindent 4 }}
  egress:
    {{- $reaches := list "postgresql" "rabbitmq" }}
    {{- if has "objects" $needs }}{{ $reaches = append $reaches "objectStore" }}{{ end }}
    {{- include "korrigo.egress" (mergeOverwrite (dict "reaches" $reaches "traces" true) $context) | nindent 4 }}
{{- end -}}
{{- end -}}
