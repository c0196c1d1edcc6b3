// Package quarklinktest runs a QuarkLink instance inside a test, an example or
// a harness, as net/http/httptest runs a web server, and a provisioning tool
// beside it.
//
// A [Server] is a whole instance: TLS 1.3 with a root of its own, an issuing
// authority (a root and an intermediate), a separate issuer of temporary
// certificates, batches of devices with their policies, signing keys and
// firmware, and every check of who may call what. A device enrols with it and
// updates from it as it would with the real one; what it answers is written down
// in docs/protocol.md. What an operator does in the web interface is a method:
// [Server.Revoke], [Server.Publish] and so on. [Server.Fault] makes it fail on
// purpose, and [Server.Stats] counts what reached it.
//
// [Server.NewDevice] makes a device of a batch, and [Server.Config] what
// quarklink.New needs to reach the Server with keys of the caller's.
// [Server.Device] and [Server.Batches] tell what the Server knows of its devices,
// [Server.Events] what happens, and [Server.Wait] waits for it.
//
// With [Options.InMemory] it opens no socket. Then, and only then, a test that
// uses it through [Server.Carrier] can run under testing/synctest: make the
// Server inside the bubble and close it there. [Pipe] is a serial cable of the
// same kind, for the tool that [NewTool] makes.
//
// The keys are made at random for each Server and are gone with it, unless
// [Server.Snapshot] or [Options.State] keeps them. There is no hub and no
// database behind the connection details that it hands out: to build one, use
// [Server.HubCertificate], trust [Server.IssuingCertificates] and refuse whom
// [Server.RevocationList] lists.
//
// The package does not import testing.
package quarklinktest
