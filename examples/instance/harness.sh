#!/bin/sh
# A harness in shell: a device made of openssl and curl enrols at a running
# instance and is revoked. Usage: harness.sh CONTROL-URL, such as
# http://127.0.0.1:6080. It needs curl, openssl and a POSIX shell.
set -eu
control=$1/v1 dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
field() { sed -n "s/^ *\"$1\": \"*\([^\",]*\)\"*,*$/\1/p"; }

# The instance, and what a device must know of it.
curl -sSf "$control/instance" >instance.json
url=https://$(field endpoint <instance.json):$(field port <instance.json)
field root <instance.json | sed 's/\\n/\
/g' >root.pem

# The device's keys; the first makes its identity.
for key in esk dsk; do openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out $key.pem; done
id=$(openssl pkey -in esk.pem -pubout -outform DER | openssl dgst -sha256 -r | cut -c 1-64)
openssl req -x509 -key esk.pem -subj "/CN=$id" -days 10000 -out identity.pem
curl -sSf "$control/batches" -d '{"name": "shell", "policy": {"lifetime": 3600}}' >/dev/null
curl -sSf "$control/batches/shell/devices" -d "{\"devices\": [\"$id\"]}" >/dev/null

# enrol CERTIFICATE CSR-KEY PATH RESULT: one step of EST.
device() { curl -sSf --cacert root.pem "$@"; }
enrol() {
  openssl req -new -key "$2" -subj "/CN=$id" -outform DER | openssl base64 >csr
  device --cert "$1" --key esk.pem -H 'Content-Type: application/pkcs10' --data-binary @csr \
    "$url/.well-known/est/$3" | base64 -d | openssl pkcs7 -inform DER -print_certs -out "$4"
}
device --cert identity.pem --key esk.pem "$url/quarklink/v1/status" | grep -q '"state":"not_enrolled"'
enrol identity.pem esk.pem temporary/simpleenroll temporary.pem
enrol temporary.pem dsk.pem simpleenroll device.pem
device --cert device.pem --key dsk.pem "$url/quarklink/v1/connection" | grep -q '"type":"iot_hub"'
curl -sSf "$control/wait?device=$id&state=enrolled&timeout=5" >/dev/null

# The operator revokes it: it is told so, and served no more.
curl -sSf -X POST "$control/devices/$id/revoke" >/dev/null
device --cert identity.pem --key esk.pem "$url/quarklink/v1/status" | grep -q '"state":"revoked"'
if device --cert device.pem --key dsk.pem "$url/quarklink/v1/connection" 2>/dev/null; then exit 1; fi
echo "enrolled and revoked $id"
