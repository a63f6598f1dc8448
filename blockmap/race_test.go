//go:build race

package blockmap

// modelOps is the length of a model run.
const modelOps = 180
