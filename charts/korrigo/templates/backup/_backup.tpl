{{- define "korrigo.backupClaim" -}}
{{- .root.Values.backup.persistence.existingClaim | default (printf "%s-backup" (include "korrigo.fullname" .)) -}}
{{- end -}}

{{/*
Where the volume of the backups may be mounted by one node at a time, and the doctor holds it: on the doctor's node (JSON).
*/}}
{{- define "korrigo.besideTheDoctor" -}}
{{- if and .root.Values.doctor.enabled (eq .root.Values.backup.persistence.accessMode "ReadWriteOnce") -}}
{{- $selector := include "korrigo.selector" (dict "root" .root "component" "monitoring") | fromYaml -}}
{{- list (dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" $selector)) | toJson -}}
{{- else -}}
[]
{{- end -}}
{{- end -}}
