#!/bin/sh
# Makes the test certificates again: an authority, and a server's and a client's certificate, for a hundred years.
# keyUsage is there because Python 3.13 verifies strictly by RFC 5280 (ssl.create_default_context).
set -eu
cd "$(dirname "$0")"

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -keyout ca.key -out ca.pem -days 36500 \
    -subj "/CN=Auditspan test authority" -addext "basicConstraints=critical,CA:TRUE" \
    -addext "keyUsage=critical,keyCertSign,cRLSign"

for name in server client; do
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -keyout "$name.key" -out "$name.csr" \
        -subj "/CN=$name" -addext "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1" \
        -addext "basicConstraints=critical,CA:FALSE" -addext "keyUsage=critical,digitalSignature" \
        -addext "extendedKeyUsage=serverAuth,clientAuth"
    openssl x509 -req -in "$name.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 36500 -copy_extensions copyall \
        -out "$name.pem"
done

rm -f ca.key ca.srl server.csr client.csr
