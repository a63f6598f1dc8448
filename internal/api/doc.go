// Package api is the agent's HTTP API: the server, its OpenAPI description, and
// the client that the command line uses.
//
// Everything is under /api/v1, in JSON; /metrics is Prometheus's text format, and
// /api/v1/profile pprof's.
// openapi.json is the description, served at /api/v1/openapi.json; a test holds
// it against the routes. An error is {"error":{"code":…,"message":…}} with the
// status of errors.go; the code is one word and does not change, the message is
// one line for people.
//
// Who may call: over a unix socket whoever may open it (mode 0600); over TCP
// whoever has the bearer token, and off loopback only under TLS ([Listen]).
//
// Bounds: a request body has at most [bodyBytesMax] bytes, a header 16 KiB; a
// request must be read within 10 s. Long work answers in lines of JSON, each a
// [Event], the last one with the result or an error.
//
// Concurrency: a Server may serve several listeners; Shutdown ends it.
package api
