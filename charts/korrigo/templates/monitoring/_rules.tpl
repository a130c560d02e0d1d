{{/*
The rule files as they stand (promtool tests those), or with the changes that monitoring.rules asks for. Nothing to change
in a file: its very text, comments and all.
*/}}

{{/* A number as people write it: Helm hands whole numbers over as floats, and 1e+08 reads badly. */}}
{{- define "korrigo.number" -}}
{{- if eq (floor .) (float64 .) }}{{ printf "%d" (int64 .) }}{{ else }}{{ printf "%v" . }}{{ end -}}
{{- end -}}

{{- define "korrigo.comparison" -}}(==|!=|>=|<=|>|<)( *)([0-9][0-9.]*(?:e[0-9]+)?)\b{{- end -}}

{{/* JSON {alert or alert/severity: change}: what values say, and what follows from other values. */}}
{{- define "korrigo.alertChanges" -}}
{{- $changes := deepCopy .root.Values.monitoring.rules.alerts -}}
{{- if .root.Values.backup.external }}{{- $_ := set $changes "BackupTooOld" (dict "enabled" false) -}}{{- end -}}
{{- toJson $changes -}}
{{- end -}}

{{/* The changed rule as JSON, empty when it is switched off. `rule` is of an alert; `change` as in values. */}}
{{- define "korrigo.changedRule" -}}
{{- $rule := .rule -}}
{{- $change := .change -}}
{{- if ne (toString (dig "enabled" true $change)) "false" -}}
{{- if hasKey $change "threshold" -}}
{{- $with := printf "${1}${2}%s" (include "korrigo.number" $change.threshold) -}}
{{- $_ := set $rule "expr" (regexReplaceAll (include "korrigo.comparison" .) $rule.expr $with) -}}
{{- end -}}
{{- range $old, $new := $change.replace -}}
{{- $_ := set $rule "expr" (replace $old $new $rule.expr) -}}
{{- end -}}
{{- with $change.for }}{{- $_ := set $rule "for" . -}}{{- end -}}
{{- with $change.labels }}{{- $_ := set $rule "labels" (mergeOverwrite $rule.labels .) -}}{{- end -}}
{{- with $change.annotations }}{{- $_ := set $rule "annotations" (mergeOverwrite $rule.annotations .) -}}{{- end -}}
{{- toJson $rule -}}
{{- end -}}
{{- end -}}

{{- define "korrigo.ruleFile" -}}
{{- $options := .root.Values.monitoring.rules -}}
{{- $changes := include "korrigo.alertChanges" . | fromJson -}}
{{- $text := .root.Files.Get .path -}}
{{- $before := fromYaml $text | toJson -}}
{{- $groups := list -}}
{{- range (fromYaml $text).groups -}}
{{- $rules := list -}}
{{- range $rule := .rules -}}
{{- if $rule.alert -}}
{{- $change := mergeOverwrite (deepCopy (get $changes $rule.alert | default dict)) (get $changes (printf "%s/%s" $rule.alert $rule.labels.severity) | default dict) -}}
{{- $changed := include "korrigo.changedRule" (dict "rule" $rule "change" $change) -}}
{{- if $changed -}}
{{- $rule = fromJson $changed -}}
{{- with $options.labels }}{{- $_ := set $rule "labels" (mergeOverwrite $rule.labels .) -}}{{- end -}}
{{- with $options.runbookBaseUrl }}{{- $_ := set $rule.annotations "runbook_url" (replace "https://korrigo.example.org/runbooks" (trimSuffix "/" .) $rule.annotations.runbook_url) -}}{{- end -}}
{{- with $options.dashboardBaseUrl }}{{- $_ := set $rule.annotations "dashboard_url" (replace "https://grafana.example.org/d" (trimSuffix "/" .) $rule.annotations.dashboard_url) -}}{{- end -}}
{{- $rules = append $rules $rule -}}
{{- end -}}
{{- else -}}
{{- $rules = append $rules $rule -}}
{{- end -}}
{{- end -}}
{{- if $rules }}{{- $groups = append $groups (set . "rules" $rules) -}}{{- end -}}
{{- end -}}
{{- $after := dict "groups" $groups -}}
{{- if eq $before (toJson $after) }}{{ $text }}{{ else }}{{ toYaml $after }}{{ end -}}
{{- end -}}

{{/* Every alert of the rule files as "Alert" and "Alert/severity", JSON list, for validation. */}}
{{- define "korrigo.alertNames" -}}
{{- $names := list -}}
{{- $root := .root -}}
{{- range $path, $_ := .root.Files.Glob "files/rules/*.yaml" -}}
{{- range ($root.Files.Get $path | fromYaml).groups -}}
{{- range .rules -}}
{{- if .alert }}{{- $names = concat $names (list .alert (printf "%s/%s" .alert .labels.severity)) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- uniq $names | toJson -}}
{{- end -}}
