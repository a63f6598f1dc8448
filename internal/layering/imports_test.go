package layering

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

const module = "plinth"

// imports maps a package, by its folder, to what it imports: other packages of
// the module by folder, all others by import path.
type imports struct {
	code map[string][]string // by files that are built into it
	test map[string][]string // by its _test.go files
}

// parse reads the import clauses of every Go file below root that the go
// command would look at: not in testdata nor in folders that start with "." or
// "_".
func parse(root fs.FS) (imports, error) {
	found := imports{code: map[string][]string{}, test: map[string][]string{}}
	err := fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := entry.Name()
		if entry.IsDir() {
			if name != "." && (base == "testdata" || base[0] == '.' || base[0] == '_') {
				return fs.SkipDir
			}
			return nil
		}
		if path.Ext(base) != ".go" {
			return nil
		}
		paths, err := clauses(root, name)
		if err != nil {
			return err
		}
		into := found.code
		if strings.HasSuffix(base, "_test.go") {
			into = found.test
		}
		dir := path.Dir(name)
		into[dir] = append(into[dir], paths...)
		return nil
	})
	return found, err
}

// clauses returns what one file imports.
func clauses(root fs.FS, name string) ([]string, error) {
	source, err := fs.ReadFile(root, name)
	if err != nil {
		return nil, err
	}
	file, err := parser.ParseFile(token.NewFileSet(), name, source, parser.ImportsOnly)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, spec := range file.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return nil, fmt.Errorf("%s: import %s: %w", name, spec.Path.Value, err)
		}
		paths = append(paths, strings.TrimPrefix(p, module+"/"))
	}
	return paths, nil
}

// breaches returns a line for each import that a rule forbids, in order.
func breaches(found imports, law []rule) []string {
	var lines []string
	for _, r := range law {
		for dir := range found.code {
			chains := [][]string{}
			if r.Through {
				chains = found.reach(dir)
			} else {
				for _, to := range found.code[dir] {
					chains = append(chains, []string{dir, to})
				}
			}
			lines = append(lines, r.broken(found, dir, chains)...)
		}
		for dir, tos := range found.test {
			chains := [][]string{}
			for _, to := range tos {
				chains = append(chains, []string{dir + " (test)", to})
			}
			lines = append(lines, r.broken(found, dir, chains)...)
		}
	}
	slices.Sort(lines)
	return slices.Compact(lines)
}

// broken returns a line for each chain of imports from dir that ends where the
// rule forbids it to.
func (r rule) broken(found imports, dir string, chains [][]string) []string {
	if !found.under(dir, r.From) || found.under(dir, r.Except) {
		return nil
	}
	var lines []string
	for _, chain := range chains {
		to := chain[len(chain)-1]
		if to == dir || !found.under(to, r.To) || found.under(to, r.Allow) {
			continue
		}
		lines = append(lines, strings.Join(chain, " → ")+": "+r.Reason)
	}
	return lines
}

// under reports whether the package is one of those named or lies below one.
func (found imports) under(pkg string, names []string) bool {
	return slices.ContainsFunc(names, func(name string) bool {
		if name == "" {
			return found.ours(pkg)
		}
		return pkg == name || strings.HasPrefix(pkg, name+"/")
	})
}

// ours reports whether the package is a folder of the module.
func (found imports) ours(pkg string) bool {
	_, code := found.code[pkg]
	_, test := found.test[pkg]
	return code || test
}

// reach returns a shortest chain of imports from dir to each package that it
// needs, directly or through others of the module.
func (found imports) reach(dir string) [][]string {
	var chains [][]string
	seen := map[string]bool{dir: true}
	for queue := [][]string{{dir}}; len(queue) > 0; queue = queue[1:] {
		chain := queue[0]
		for _, to := range found.code[chain[len(chain)-1]] {
			if seen[to] {
				continue
			}
			seen[to] = true
			next := append(slices.Clone(chain), to)
			chains = append(chains, next)
			queue = append(queue, next)
		}
	}
	return chains
}
