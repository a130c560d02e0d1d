{{/*
Environment and secrets of the processes.

Settings are written into each pod rather than shared by a ConfigMap: a process refuses a variable that it does not
know, so a pod of the previous release that restarts during an upgrade must still see the settings of its own release.
For the same reason no checksum annotation is needed: another setting is another pod.
Secrets are files, which the processes read again when they change (KORRIGO_…_FILE).
*/}}

{{- define "korrigo.secretsFolder" -}}/etc/korrigo/secrets{{- end -}}

{{/* The address of a room's gRPC, by its Service. */}}
{{- define "korrigo.rpcAddress" -}}
{{- printf "%s-%s:9090" (include "korrigo.fullname" .) .room -}}
{{- end -}}

{{/*
Which secrets a process holds, as a list of {name, items}. `needs`: words of database, migrate, broker, management,
objects, rpc, public-keys, signing-key, alerts-token. The template writes YAML that the two users below parse.
*/}}
{{- define "korrigo.secretSources" -}}
{{- $v := .root.Values -}}
{{- $needs := .needs -}}
{{- $database := list -}}
{{- if has "database" $needs }}{{- $database = append $database (dict "key" $v.postgresql.urlKey "path" "postgresql/url") -}}{{- end -}}
{{- if and (has "migrate" $needs) $v.postgresql.migrateUrlKey }}{{- $database = append $database (dict "key" $v.postgresql.migrateUrlKey "path" "postgresql/migrate-url") -}}{{- end -}}
{{- $broker := list -}}
{{- if has "broker" $needs }}{{- $broker = append $broker (dict "key" $v.rabbitmq.urlKey "path" "rabbitmq/url") -}}{{- end -}}
{{- if and (has "management" $needs) $v.rabbitmq.managementUrlKey }}{{- $broker = append $broker (dict "key" $v.rabbitmq.managementUrlKey "path" "rabbitmq/management-url") -}}{{- end -}}
{{- $auth := list -}}
{{- if has "public-keys" $needs }}{{- $auth = append $auth (dict "key" $v.auth.publicKeysKey "path" "auth/public-keys.pem") -}}{{- end -}}
{{- if has "signing-key" $needs }}{{- $auth = append $auth (dict "key" $v.auth.signingKeyKey "path" "auth/signing-key.pem") -}}{{- end -}}
{{- $sources := list (dict "name" $v.postgresql.existingSecret "items" $database) (dict "name" $v.rabbitmq.existingSecret "items" $broker) -}}
{{- if and (has "objects" $needs) $v.objectStore.existingSecret -}}
{{- $sources = append $sources (dict "name" $v.objectStore.existingSecret "items" (list (dict "key" $v.objectStore.accessKeyIdKey "path" "s3/access-key-id") (dict "key" $v.objectStore.secretAccessKeyKey "path" "s3/secret-access-key"))) -}}
{{- end -}}
{{- if has "rpc" $needs -}}
{{- $sources = append $sources (dict "name" (include "korrigo.secretName.rpc" .) "items" (list (dict "key" $v.rpc.secretKey "path" "rpc/secret"))) -}}
{{- end -}}
{{- $sources = append $sources (dict "name" (include "korrigo.secretName.auth" .) "items" $auth) -}}
{{- if has "alerts-token" $needs -}}
{{- $sources = append $sources (dict "name" (include "korrigo.secretName.alertmanager" .) "items" (list (dict "key" $v.monitoring.alertmanager.tokenKey "path" "alertmanager/token"))) -}}
{{- end -}}
{{- range $sources }}
{{- if .items }}
- secret:
    name: {{ .name }}
    items:
      {{- toYaml .items | nindent 6 }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "korrigo.secretName.rpc" -}}{{ .root.Values.rpc.existingSecret | default "korrigo-rpc" }}{{- end -}}
{{- define "korrigo.secretName.auth" -}}{{ .root.Values.auth.existingSecret | default "korrigo-auth" }}{{- end -}}
{{- define "korrigo.secretName.alertmanager" -}}{{ .root.Values.monitoring.alertmanager.existingSecret | default "korrigo-alertmanager" }}{{- end -}}
{{- define "korrigo.secretName.admin" -}}{{ .root.Values.admin.existingSecret | default "korrigo-admin" }}{{- end -}}

{{/* Environment of a process that holds the secrets that `needs` names. */}}
{{- define "korrigo.environment" -}}
{{- $v := .root.Values -}}
{{- $folder := include "korrigo.secretsFolder" . -}}
{{- $needs := .needs -}}
{{- $context := . -}}
- name: TMPDIR
  value: /tmp
- name: POD_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
{{- if has "database" $needs }}
- name: KORRIGO_DATABASE__URL_FILE
  value: {{ $folder }}/postgresql/url
{{- end }}
{{- if and (has "migrate" $needs) $v.postgresql.migrateUrlKey }}
- name: KORRIGO_DATABASE__MIGRATE_URL_FILE
  value: {{ $folder }}/postgresql/migrate-url
{{- end }}
{{- if has "broker" $needs }}
- name: KORRIGO_BROKER__URL_FILE
  value: {{ $folder }}/rabbitmq/url
{{- end }}
{{- if and (has "management" $needs) $v.rabbitmq.managementUrlKey }}
- name: KORRIGO_BROKER__MANAGEMENT_URL_FILE
  value: {{ $folder }}/rabbitmq/management-url
{{- end }}
{{- if has "objects" $needs }}
- name: KORRIGO_BLOBS__URL
  value: {{ $v.objectStore.url | quote }}
{{- with $v.objectStore.endpoint }}
- name: KORRIGO_BLOBS__ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- with $v.objectStore.region }}
- name: KORRIGO_BLOBS__REGION
  value: {{ . | quote }}
{{- end }}
{{- if $v.objectStore.existingSecret }}
- name: KORRIGO_BLOBS__ACCESS_KEY_ID_FILE
  value: {{ $folder }}/s3/access-key-id
- name: KORRIGO_BLOBS__SECRET_ACCESS_KEY_FILE
  value: {{ $folder }}/s3/secret-access-key
{{- end }}
{{- end }}
{{- if has "rpc" $needs }}
- name: KORRIGO_RPC__SECRET_FILE
  value: {{ $folder }}/rpc/secret
{{- range splitList " " (include "korrigo.rooms" .) }}
- name: KORRIGO_RPC__{{ upper . }}
  value: {{ include "korrigo.rpcAddress" (dict "root" $context.root "room" .) }}
{{- end }}
{{- end }}
{{- if has "public-keys" $needs }}
- name: KORRIGO_AUTH__PUBLIC_KEYS_FILE
  value: {{ $folder }}/auth/public-keys.pem
{{- end }}
{{- if has "signing-key" $needs }}
- name: KORRIGO_AUTH__SIGNING_KEY_FILE
  value: {{ $folder }}/auth/signing-key.pem
{{- end }}
{{- if has "alerts-token" $needs }}
- name: KORRIGO_ALERTING__TOKEN_FILE
  value: {{ $folder }}/alertmanager/token
{{- end }}
- name: KORRIGO_LOG__LEVEL
  value: {{ $v.log.level }}
{{- with $v.publicUrl }}
- name: KORRIGO_HTTP__PUBLIC_URL
  value: {{ . | quote }}
{{- end }}
{{- with $v.otel.endpoint }}
- name: KORRIGO_OTEL__ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- range $name, $value := $v.settings }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{/* Environment of a process that listens in its pod. */}}
{{- define "korrigo.listening" -}}
{{- $v := .root.Values -}}
- name: KORRIGO_HTTP__HOST
  value: {{ $v.http.host | quote }}
- name: KORRIGO_HTTP__TRUSTED_PROXIES
  value: {{ join "," $v.http.trustedProxies | quote }}
{{- with $v.http.allowedOrigins }}
- name: KORRIGO_HTTP__ALLOWED_ORIGINS
  value: {{ join "," . | quote }}
{{- end }}
{{- if or $v.publicUrl $v.http.allowedHosts }}
{{- /* kubelet and Prometheus call a pod by its address, the rooms each other by the Services' names. */}}
{{- $hosts := list "$(POD_IP)" "[$(POD_IP)]" }}
{{- range splitList " " (include "korrigo.rooms" .) }}
{{- $service := printf "%s-%s" (include "korrigo.fullname" $) . }}
{{- $hosts = concat $hosts (list $service (printf "%s.%s" $service $.root.Release.Namespace) (printf "%s.%s.svc" $service $.root.Release.Namespace)) }}
{{- end }}
- name: KORRIGO_HTTP__ALLOWED_HOSTS
  value: {{ join "," (concat $hosts $v.http.allowedHosts) | quote }}
{{- end }}
{{- end -}}
