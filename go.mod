module github.com/quarklink-go/quarklink

go 1.25.0

require (
	github.com/cenkalti/backoff/v4 v4.3.0
	github.com/google/go-tpm v0.9.8
	github.com/smallstep/pkcs7 v0.2.3
	github.com/youmark/pkcs8 v0.0.0-20240726163527-a2c0da244d78
	golang.org/x/crypto v0.55.0
)

require (
	go.bug.st/serial v1.8.0
	pgregory.net/rapid v1.3.0
)

require golang.org/x/sys v0.47.0 // indirect

require (
	github.com/stretchr/testify v1.12.1
	go.yaml.in/yaml/v3 v3.0.5 // indirect
)
