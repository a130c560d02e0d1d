{{- define "korrigo.backupClaim" -}}
{{- .root.Values.backup.persistence.existingClaim | default (printf "%s-backup" (include "korrigo.fullname" .)) -}}
{{- end -}}
