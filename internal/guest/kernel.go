package guest

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// kernelPackage depends on the package of the newest kernel.
const kernelPackage = "linux-image-amd64"

// Kernel is an unpacked kernel package.
type Kernel struct {
	Image   string            // path of what QEMU boots
	modules map[string]string // path by name, with _ for -
}

// FindKernel returns the kernel in the user's cache. With an empty cache it
// downloads Debian's package by apt-get, which takes 70 MB and no root. The image
// is decompressed, which an emulated processor would do slowly at each boot.
func FindKernel(ctx context.Context) (*Kernel, error) {
	cache, err := os.UserCacheDir()
	if err != nil { // no home
		cache = os.TempDir()
	}
	cache = filepath.Join(cache, "plinth-guest")
	dir := filepath.Join(cache, "kernel")
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(cache, 0o755); err != nil {
			return nil, err
		}
		if err := fetchKernel(ctx, cache, dir); err != nil {
			return nil, fmt.Errorf("fetch package %s: %w", kernelPackage, err)
		}
	} else if err != nil {
		return nil, err
	}
	k, err := openKernel(dir)
	if err != nil {
		return nil, err
	}
	plain := k.Image + plainExt
	if _, err := os.Stat(plain); errors.Is(err, fs.ErrNotExist) {
		if err := decompress(ctx, k.Image, plain); err != nil {
			return nil, fmt.Errorf("decompress %s: %w", k.Image, err)
		}
	} else if err != nil {
		return nil, err
	}
	k.Image = plain
	return k, nil
}

// fetchKernel downloads and unpacks beside dir, and then moves it there whole.
func fetchKernel(ctx context.Context, cache, dir string) error {
	work, err := os.MkdirTemp(cache, "fetch")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	// Lists of its own serve where the machine's are absent or old.
	lists := filepath.Join(work, "lists")
	if err := os.MkdirAll(filepath.Join(lists, "partial"), 0o755); err != nil {
		return err
	}
	var apt []string
	name, err := newestKernel(ctx, apt)
	if err == nil {
		_, err = command(ctx, work, "apt-get", "download", "-qq", name)
	}
	if err != nil {
		apt = []string{"-o", "Dir::State::Lists=" + lists, "-o", "Dir::Cache=" + work, "-o", "APT::Sandbox::User="}
		if _, err := command(ctx, work, "apt-get", append(apt, "update", "-qq")...); err != nil {
			return err
		}
		if name, err = newestKernel(ctx, apt); err != nil {
			return err
		}
		if _, err := command(ctx, work, "apt-get", append(apt, "download", "-qq", name)...); err != nil {
			return err
		}
	}
	packages, err := filepath.Glob(filepath.Join(work, name+"_*.deb"))
	if err != nil || len(packages) != 1 {
		return fmt.Errorf("%d packages downloaded: %w", len(packages), err)
	}
	tree := filepath.Join(work, "tree")
	if _, err := command(ctx, work, "dpkg", "-x", packages[0], tree); err != nil {
		return err
	}
	if err := os.Rename(tree, dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	} // another test was faster
	return nil
}

func newestKernel(ctx context.Context, apt []string) (string, error) {
	out, err := command(ctx, "", "apt-cache", append(apt, "depends", kernelPackage)...)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(out)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok && strings.HasPrefix(name, "linux-image-") {
			return name, nil
		}
	}
	return "", errors.New("it depends on no kernel")
}

func openKernel(dir string) (*Kernel, error) {
	k := &Kernel{modules: map[string]string{}}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name, ok := strings.CutSuffix(d.Name(), ".ko"); ok {
			k.modules[strings.ReplaceAll(name, "-", "_")] = path
		}
		if strings.HasPrefix(d.Name(), "vmlinuz-") && filepath.Ext(path) != plainExt {
			k.Image = path
		}
		return nil
	})
	if err == nil && k.Image == "" {
		err = fmt.Errorf("no kernel in %s: remove it to have it fetched again", dir)
	}
	return k, err
}

// order returns the modules that the named ones need and those themselves, in
// the order in which they must be loaded.
func (k *Kernel) order(names []string) ([]string, error) {
	var out []string
	var add func(name string, depth int) error
	add = func(name string, depth int) error {
		name = strings.ReplaceAll(name, "-", "_")
		if slices.Contains(out, name) {
			return nil
		}
		path, ok := k.modules[name]
		if !ok || depth > len(k.modules) {
			return fmt.Errorf("kernel module %s: %w", name, fs.ErrNotExist)
		}
		needs, err := moduleNeeds(path)
		if err != nil {
			return fmt.Errorf("kernel module %s: %w", name, err)
		}
		for _, n := range needs {
			if err := add(n, depth+1); err != nil {
				return err
			}
		}
		out = append(out, name)
		return nil
	}
	for _, n := range names {
		if err := add(n, 0); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// moduleNeeds reads a module's own list of the modules it needs.
func moduleNeeds(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := bytes.CutPrefix(entry, []byte("depends=")); ok && len(list) > 0 {
			return strings.Split(string(list), ","), nil
		}
	}
	return nil, nil
}

// command runs a program to its end and returns its output; an error has what it
// complained of.
func command(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	return output(cmd)
}

func output(cmd *exec.Cmd) ([]byte, error) {
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", cmd.Args[0], err, bytes.TrimSpace(complaints.Bytes()))
	}
	return out, nil
}
