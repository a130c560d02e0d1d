{{/*
What a schema cannot say: values that fit one by one and are impossible together. Every sentence names the value and the
way out. Rendered by templates/validate.yaml, which makes no object.
*/}}
{{- define "korrigo.validate" -}}
{{- $v := .Values -}}
{{- if and $v.gateway.enabled (not $v.gateway.parentRefs) -}}
{{- fail "gateway.parentRefs is empty: name the Gateway that people reach, or set gateway.enabled=false" -}}
{{- end -}}
{{- if and $v.ingress.enabled (not $v.ingress.host) -}}
{{- fail "ingress.host is empty: name the host that people type, or set ingress.enabled=false" -}}
{{- end -}}
{{- if and (not $v.networkPolicy.enabled) (or $v.networkPolicy.ingress.gateway.from $v.networkPolicy.ingress.prometheus.from $v.networkPolicy.ingress.alertmanager.from) -}}
{{- fail "networkPolicy.ingress names who may come in, but networkPolicy.enabled=false lets everybody in" -}}
{{- end -}}
{{- range $room := splitList " " (include "korrigo.rooms" (dict "root" .)) -}}
{{- $api := (get $v $room).api -}}
{{- $worker := (get $v $room).worker -}}
{{- if gt (int $api.autoscaling.minReplicas) (int $api.autoscaling.maxReplicas) -}}
{{- fail (printf "%s.api.autoscaling: minReplicas %d is above maxReplicas %d" $room (int $api.autoscaling.minReplicas) (int $api.autoscaling.maxReplicas)) -}}
{{- end -}}
{{- if gt (int $worker.keda.minReplicas) (int $worker.keda.maxReplicas) -}}
{{- fail (printf "%s.worker.keda: minReplicas %d is above maxReplicas %d" $room (int $worker.keda.minReplicas) (int $worker.keda.maxReplicas)) -}}
{{- end -}}
{{- range $part, $options := dict "api" $api "worker" $worker -}}
{{- if and $options.podDisruptionBudget.enabled (has (toString $options.podDisruptionBudget.maxUnavailable) (list "0" "0%")) -}}
{{- fail (printf "%s.%s.podDisruptionBudget.maxUnavailable is 0: no drain of a node could ever end" $room $part) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $v.operator.podDisruptionBudget.enabled (has (toString $v.operator.podDisruptionBudget.maxUnavailable) (list "0" "0%")) -}}
{{- fail "operator.podDisruptionBudget.maxUnavailable is 0: no drain of a node could ever end" -}}
{{- end -}}
{{- if and $v.doctor.enabled (not $v.backup.external) (eq $v.backup.persistence.accessMode "ReadWriteOncePod") -}}
{{- fail "backup.persistence.accessMode ReadWriteOncePod lets one pod mount the volume, and the doctor holds it: take ReadWriteOnce, or set doctor.enabled=false" -}}
{{- end -}}
{{- include "korrigo.validateLabels" . -}}
{{- include "korrigo.validateSettings" . -}}
{{- include "korrigo.validateAlerts" . -}}
{{- end -}}

{{/* What the chart sets itself may not be set a second time. */}}
{{- define "korrigo.validateSettings" -}}
{{- $from := dict "DATABASE__URL" "postgresql" "DATABASE__MIGRATE_URL" "postgresql" "BROKER__" "rabbitmq" "BLOBS__" "objectStore" "RPC__SECRET" "rpc" "RPC__LISTEN" "the chart" "RPC__INGEST" "the chart" "RPC__GRADING" "the chart" "RPC__RENDER" "the chart" "RPC__AUDIT" "the chart" "AUTH__SIGNING_KEY" "auth" "AUTH__PUBLIC_KEYS" "auth" "HTTP__HOST" "http" "HTTP__PORT" "the chart" "HTTP__METRICS_PORT" "the chart" "HTTP__PUBLIC_URL" "publicUrl" "HTTP__TRUSTED_PROXIES" "http" "HTTP__ALLOWED_" "http" "LOG__LEVEL" "log" "OTEL__ENDPOINT" "otel" "JOBS__CONCURRENCY" "ROOM.worker.concurrency" "BACKUP__" "backup" "MONITORING__" "monitoring" -}}
{{- range $name, $_ := .Values.settings -}}
{{- range $prefix, $value := $from -}}
{{- if hasPrefix (printf "KORRIGO_%s" $prefix) $name -}}
{{- fail (printf "settings.%s is set by %s: change it there" $name $value) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "korrigo.validateAlerts" -}}
{{- $changes := .Values.monitoring.rules.alerts -}}
{{- $known := include "korrigo.alertNames" (dict "root" .) | fromJsonArray -}}
{{- range $name, $_ := $changes -}}
{{- if not (has $name $known) -}}
{{- fail (printf "monitoring.rules.alerts: there is no alert %s; known are %s" $name (join ", " $known)) -}}
{{- end -}}
{{- end -}}
{{- $root := . -}}
{{- range $path, $_ := .Files.Glob "files/rules/*.yaml" -}}
{{- range ($root.Files.Get $path | fromYaml).groups -}}
{{- range $rule := .rules -}}
{{- if $rule.alert -}}
{{- range $name := list $rule.alert (printf "%s/%s" $rule.alert $rule.labels.severity) -}}
{{- $change := get $changes $name | default dict -}}
{{- if hasKey $change "threshold" -}}
{{- $found := regexFindAll (include "korrigo.comparison" $root) $rule.expr -1 -}}
{{- if ne (len $found) 1 -}}
{{- fail (printf "monitoring.rules.alerts.%s.threshold: the expression compares with %d numbers (%s); use `replace` instead" $name (len $found) (join ", " $found)) -}}
{{- end -}}
{{- end -}}
{{- range $old, $_ := $change.replace -}}
{{- if not (contains $old $rule.expr) -}}
{{- fail (printf "monitoring.rules.alerts.%s.replace: %q is not in the expression" $name $old) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Labels that the chart sets itself select pods: nobody may change them. */}}
{{- define "korrigo.validateLabels" -}}
{{- $given := dict "commonLabels" .Values.commonLabels "pods.labels" .Values.pods.labels "monitoring.labels" .Values.monitoring.labels "monitoring.dashboards.labels" .Values.monitoring.dashboards.labels "monitoring.rules.objectLabels" .Values.monitoring.rules.objectLabels -}}
{{- range $room := splitList " " (include "korrigo.rooms" (dict "root" .)) -}}
{{- range $part, $options := get $.Values $room -}}
{{- $_ := set $given (printf "%s.%s.pod.labels" $room $part) ($options.pod.labels | default dict) -}}
{{- end -}}
{{- end -}}
{{- range $name := list "operator" "migrate" "backup" "doctor" "tests" -}}
{{- $_ := set $given (printf "%s.pod.labels" $name) ((get $.Values $name).pod.labels | default dict) -}}
{{- end -}}
{{- $own := include "korrigo.ownLabels" (dict "root" . "component" "any") | fromYaml -}}
{{- range $where, $labels := $given -}}
{{- range $key, $_ := $labels -}}
{{- if hasKey $own $key -}}
{{- fail (printf "%s: %s is set by the chart" $where $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
