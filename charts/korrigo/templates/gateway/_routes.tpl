{{/* Path prefix -> room; the longest prefix wins, as the Gateway API and Ingress both say. */}}
{{- define "korrigo.routes" -}}
ingest: [/api/scans, /api/uploads, /api/pages, /api/students, /api/identification]
audit: [/api/audit, /verify]
grading: [/]
{{- end -}}
