{{/*
Names and labels. Every helper takes a dict with `root` (the chart's context); most take `component` too: ingest,
grading, render, audit, ROOM-worker, operator, gateway, monitoring, backup or migrate.
*/}}

{{- define "korrigo.fullname" -}}
{{- if contains "korrigo" .root.Release.Name -}}
{{- .root.Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-korrigo" .root.Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What selects the pods of a component; never changes between releases, because a Deployment's selector may not. */}}
{{- define "korrigo.selector" -}}
app.kubernetes.io/name: korrigo
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "korrigo.ownLabels" -}}
{{ include "korrigo.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: korrigo
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/* Labels of an object; `more` wins over commonLabels, so that no key stands twice. */}}
{{- define "korrigo.labels" -}}
{{ include "korrigo.ownLabels" . }}
{{- with merge (deepCopy (.more | default dict)) .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* metadata of an object: name (default: FULLNAME-COMPONENT), namespace, labels; `annotations` is a dict. */}}
{{- define "korrigo.metadata" -}}
name: {{ .name | default (printf "%s-%s" (include "korrigo.fullname" .) .component) }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "korrigo.labels" (merge (dict "more" (.labels | default dict)) .) | nindent 2 }}
{{- with .annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* An image by the name of its program: [REGISTRY/]REPOSITORY/PROGRAM:TAG or @DIGEST. */}}
{{- define "korrigo.image" -}}
{{- $image := .root.Values.image -}}
{{- $path := printf "%s/%s" $image.repository .program -}}
{{- if $image.registry }}{{- $path = printf "%s/%s" $image.registry $path -}}{{- end -}}
{{- $digest := get $image.digests .program | default "" -}}
{{- if $digest -}}
{{- printf "%s@%s" $path $digest -}}
{{- else -}}
{{- printf "%s:%s" $path ($image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "korrigo.rooms" -}}ingest grading render audit{{- end -}}
