package api

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// object is a decoded JSON object.
type object = map[string]any

func description(t *testing.T) object {
	t.Helper()
	var d object
	if err := json.Unmarshal(openapi, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// Every route is described and every description is a route.
func TestDescriptionHasRoutes(t *testing.T) {
	var described, there []string
	for path, item := range description(t)["paths"].(object) {
		for method := range item.(object) {
			if method != "parameters" {
				described = append(described, strings.ToUpper(method)+" "+path)
			}
		}
	}
	for _, r := range (&Server{}).routes() {
		there = append(there, r.method+" "+r.path)
	}
	slices.Sort(described)
	slices.Sort(there)
	if !slices.Equal(described, there) {
		t.Errorf("described:\n%q\nroutes:\n%q", described, there)
	}
}

// What is answered is as described: status, and the schema of the body.
func TestAnswersAreAsDescribed(t *testing.T) {
	s, d := newServer(t), description(t)
	for _, c := range []struct {
		method, path, template, body string
		status                       int
	}{
		{"GET", "/disks", "/disks", "", 200},
		{"GET", "/status", "/status", "", 200},
		{"GET", "/nodes", "/nodes", "", 200},
		{"GET", "/events", "/events", "", 200},
		{"GET", "/events?after=1&limit=1", "/events", "", 200},
		{"GET", "/events?after=x", "/events", "", 400},
		{"GET", "/events?limit=-1", "/events", "", 400},
		{"POST", "/nodes", "/nodes", `{"name":"dn2","addresses":["10.0.0.2:10811"]}`, 409},
		{"POST", "/nodes", "/nodes", `{"node":"dn2"}`, 400},
		{"POST", "/nodes/dn1/drain", "/nodes/{name}/drain", "", 409},
		{"POST", "/rebalance", "/rebalance", "", 409},
		{"DELETE", "/rebalance", "/rebalance", "", 409},
		{"POST", "/spindles", "/spindles", `{"node":"dn7"}`, 409},
		{"POST", "/spindles", "/spindles", `{"nodes":"dn7"}`, 400},
		{"POST", "/spindles", "/spindles", `{}`, 200},
		{"POST", "/spindles/1/replace", "/spindles/{spindle}/replace", "", 409},
		{"POST", "/spindles/x/replace", "/spindles/{spindle}/replace", "", 400},
		{"DELETE", "/nodes/dn1?address=unix:/x", "/nodes/{name}", "", 409},
		{"POST", "/disks", "/disks", `{"name":"a","bytes":1048576,"chunk_bytes":8192,"cipher":"aes-256-xts","stable":true}`, 201},
		{"POST", "/disks", "/disks", `{"name":"b","bytes":1048576}`, 201},
		{"POST", "/disks", "/disks", `{"name":"a","bytes":1048576}`, 409},
		{"POST", "/disks", "/disks", `{"name":"","bytes":1048576}`, 400},
		{"GET", "/disks", "/disks", "", 200},
		{"GET", "/disks/a", "/disks/{name}", "", 200},
		{"GET", "/disks/c", "/disks/{name}", "", 404},
		{"GET", "/disks/..%2f..", "/disks/{name}", "", 404},
		{"PATCH", "/disks/a", "/disks/{name}", `{"bytes":2097152}`, 200},
		{"PATCH", "/disks/a", "/disks/{name}", `{"bytes":1048576}`, 400},
		{"PATCH", "/disks/c", "/disks/{name}", `{"bytes":1048576}`, 404},
		{"PATCH", "/disks/b", "/disks/{name}", `{"name":"a"}`, 409},
		{"PATCH", "/disks/b", "/disks/{name}", `{"name":"e"}`, 200},
		{"PATCH", "/disks/e", "/disks/{name}", `{"name":"b"}`, 200},
		{"PATCH", "/disks/b", "/disks/{name}", `{"limits":{"iops":100,"write_bps":1048576,"burst_seconds":0.5}}`, 200},
		{"PATCH", "/disks/b", "/disks/{name}", `{"limits":{"iops":1}}`, 400},
		{"PATCH", "/disks/b", "/disks/{name}", `{"limits":{"iops":100},"name":"a"}`, 400},
		{"PATCH", "/disks/c", "/disks/{name}", `{"limits":{"iops":100}}`, 404},
		{"GET", "/disks/b", "/disks/{name}", "", 200},
		{"GET", "/cpu", "/cpu", "", 200},
		{"PATCH", "/cpu", "/cpu", `{"mode":"insane"}`, 200},
		{"PATCH", "/cpu", "/cpu", `{"mode":"slow"}`, 400},
		{"PATCH", "/cpu", "/cpu", `{"cores":0.5}`, 200},
		{"PATCH", "/cpu", "/cpu", `{"cores":-1}`, 400},
		{"PATCH", "/cpu", "/cpu", `{}`, 200},
		{"GET", "/disks/a/snapshots", "/disks/{name}/snapshots", "", 200},
		{"PATCH", "/disks/a", "/disks/{name}", `{"host":"local"}`, 200},
		{"PATCH", "/disks/a", "/disks/{name}", `{"host":"other"}`, 400},
		{"PATCH", "/disks/a", "/disks/{name}", `{"host":"local","name":"z"}`, 400},
		{"GET", "/disks/c/snapshots", "/disks/{name}/snapshots", "", 404},
		{"POST", "/disks/a/snapshots", "/disks/{name}/snapshots", `{"name":"s","labels":{"k":"v"},"expires":"2099-01-01T00:00:00Z"}`, 201},
		{"POST", "/disks/a/snapshots", "/disks/{name}/snapshots", `{"name":"s"}`, 409},
		{"POST", "/disks/a/snapshots", "/disks/{name}/snapshots", `{"name":"x@y"}`, 400},
		{"POST", "/disks/a/snapshots", "/disks/{name}/snapshots", `{}`, 201},
		{"POST", "/disks/c/snapshots", "/disks/{name}/snapshots", `{}`, 404},
		{"POST", "/snapshots", "/snapshots", `{"disks":["a","b"],"name":"t"}`, 201},
		{"POST", "/snapshots", "/snapshots", `{"disks":[]}`, 400},
		{"GET", "/disks/a/snapshots", "/disks/{name}/snapshots", "", 200},
		{"GET", "/disks/a/snapshots/s", "/disks/{name}/snapshots/{snapshot}", "", 200},
		{"GET", "/disks/a/snapshots/x%0ay", "/disks/{name}/snapshots/{snapshot}", "", 404},
		{"PATCH", "/disks/a/snapshots/s", "/disks/{name}/snapshots/{snapshot}", `{"name":"t"}`, 409},
		{"PATCH", "/disks/a/snapshots/s", "/disks/{name}/snapshots/{snapshot}", `{"name":"r"}`, 200},
		{"POST", "/disks/a/snapshots/r/clone", "/disks/{name}/snapshots/{snapshot}/clone", `{"name":"f"}`, 201},
		{"POST", "/disks/a/snapshots/r/clone", "/disks/{name}/snapshots/{snapshot}/clone", `{"name":"f"}`, 409},
		{"POST", "/disks/a/snapshots/s/clone", "/disks/{name}/snapshots/{snapshot}/clone", `{"name":"g"}`, 404},
		{"GET", "/disks/f", "/disks/{name}", "", 200},
		{"GET", "/disks/a/diff?from=r&to=t&limit=1", "/disks/{name}/diff", "", 200},
		{"GET", "/disks/a/diff?from=t&to=r", "/disks/{name}/diff", "", 400},
		{"GET", "/disks/a/diff?from=r", "/disks/{name}/diff", "", 404},
		{"POST", "/disks/a/snapshots/t/rollback", "/disks/{name}/snapshots/{snapshot}/rollback", "", 200},
		{"POST", "/disks/a/snapshots/s/rollback", "/disks/{name}/snapshots/{snapshot}/rollback", "", 404},
		{"DELETE", "/disks/a/snapshots/r?wait=true", "/disks/{name}/snapshots/{snapshot}", "", 204},
		{"DELETE", "/disks/a/snapshots/r", "/disks/{name}/snapshots/{snapshot}", "", 404},
		{"DELETE", "/disks/b", "/disks/{name}", "", 409},
		{"DELETE", "/disks/b?snapshots=true", "/disks/{name}", "", 204},
		{"DELETE", "/disks/b", "/disks/{name}", "", 404},
		{"POST", "/reclaim?dry_run=true", "/reclaim", "", 200},
		{"POST", "/reclaim?full=true", "/reclaim", "", 200},
		{"GET", "/disks/a/snapshots", "/disks/{name}/snapshots", "", 200},
		{"GET", "/status", "/status", "", 200},
		{"POST", "/quiesce", "/quiesce", "", 204},
		{"POST", "/sweep", "/sweep", "", 204},
		{"POST", "/verify", "/verify", "", 200},
		{"POST", "/verify?repair=true", "/verify", "", 200},
		{"POST", "/verify?leaks=true", "/verify", "", 200},
		{"POST", "/verify?leaks=maybe", "/verify", "", 400},
		{"POST", "/verify?repair=maybe", "/verify", "", 400},
		{"GET", "/openapi.json", "/openapi.json", "", 200},
	} {
		what := c.method + " " + c.path
		resp := s.ask(c.method, prefix+c.path, c.body)
		if resp.StatusCode != c.status {
			t.Errorf("%s: status %d, want %d", what, resp.StatusCode, c.status)
			continue
		}
		responses := d["paths"].(object)[c.template].(object)[strings.ToLower(c.method)].(object)["responses"].(object)
		response, ok := responses[fmt.Sprint(c.status)].(object)
		if !ok && c.status >= 400 {
			response, ok = responses["default"].(object)
		}
		if !ok {
			t.Errorf("%s: status %d is not described", what, c.status)
			continue
		}
		checkBody(t, d, what, response, resp)
	}
}

func checkBody(t *testing.T, d object, what string, response object, resp *http.Response) {
	t.Helper()
	content, ok := response["content"].(object)
	if !ok {
		if b, _ := io.ReadAll(resp.Body); len(b) > 0 && resp.StatusCode == http.StatusNoContent {
			t.Errorf("%s: a body that is not described: %s", what, b)
		}
		return
	}
	kind := resp.Header.Get("Content-Type")
	media, ok := content[kind].(object)
	if !ok {
		t.Errorf("%s: content of type %q is not described", what, kind)
		return
	}
	dec := json.NewDecoder(resp.Body)
	values := 0
	for ; dec.More(); values++ {
		var v any
		if err := dec.Decode(&v); err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		for _, wrong := range violations(d, media["schema"].(object), v, "answer") {
			t.Errorf("%s: %s", what, wrong)
		}
	}
	if values == 0 || values > 1 && kind == "application/json" {
		t.Errorf("%s: %d values", what, values)
	}
}

// violations says how a value departs from a schema, in the part of JSON Schema
// that the description uses. A property that is not described is one.
func violations(d, schema object, v any, at string) []string {
	if ref, ok := schema["$ref"].(string); ok {
		name := strings.TrimPrefix(ref, "#/components/schemas/")
		return violations(d, d["components"].(object)["schemas"].(object)[name].(object), v, at)
	}
	var out []string
	switch v := v.(type) {
	case object:
		properties, _ := schema["properties"].(object)
		more, _ := schema["additionalProperties"].(object)
		for k, item := range v {
			if p, ok := properties[k].(object); ok {
				out = append(out, violations(d, p, item, at+"."+k)...)
			} else if more != nil {
				out = append(out, violations(d, more, item, at+"."+k)...)
			} else if properties != nil {
				out = append(out, at+"."+k+" is not described")
			}
		}
		required, _ := schema["required"].([]any)
		for _, k := range required {
			if _, ok := v[k.(string)]; !ok {
				out = append(out, at+"."+k.(string)+" is missing")
			}
		}
	case []any:
		for i, item := range v {
			out = append(out, violations(d, schema["items"].(object), item, fmt.Sprint(at, i))...)
		}
	}
	kind := ""
	switch v.(type) {
	case object:
		kind = "object"
	case []any:
		kind = "array"
	case string:
		kind = "string"
	case bool:
		kind = "boolean"
	case float64:
		kind = "integer"
	case nil:
		kind = "null"
	}
	if schema["type"] != kind && (schema["type"] != "number" || kind != "integer") {
		out = append(out, fmt.Sprintf("%s is of type %s, not %v", at, kind, schema["type"]))
	}
	if enum, ok := schema["enum"].([]any); ok && !slices.Contains(enum, v) {
		out = append(out, fmt.Sprintf("%s is %v, none of %v", at, v, enum))
	}
	return out
}
