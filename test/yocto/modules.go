// Package yocto holds the Yocto layer in meta-kapernikov to the rest of the
// repository: which Go modules its recipe names, which files it takes, and which
// disk it makes.
//
// It knows no bitbake and needs no other layer: `make yocto-check` has the proofs
// that do. What it makes is text that is committed, so equal inputs give equal text.
package yocto

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
)

// Recipe is the folder of osctl's recipe, seen from the top of the repository.
const Recipe = "meta-kapernikov/recipes-core/osctl"

// The generated files, in [Recipe].
const (
	ModulesFile  = "osctl-go-mods.inc"
	LicensesFile = "osctl-licenses.inc"
)

// notice is the head of both files.
const notice = "# Made by \"make yocto-modules\" from go.mod and go.sum; do not edit.\n\n"

// Module is one entry of SRC_URI.
type Module struct {
	Path, Version string
	// OnlyMod says that the go command reads go.mod and no code of it.
	OnlyMod bool
	// SHA256 is that of the zip file, or of go.mod, in hexadecimal.
	SHA256 string
}

// String is the entry in the form of bitbake's fetcher for Go modules
// (bitbake/lib/bb/fetch2/gomod.py).
func (m Module) String() string {
	only := ""
	if m.OnlyMod {
		only = ";mod=1"
	}
	return fmt.Sprintf("gomod://%s;version=%s%s;sha256sum=%s", m.Path, m.Version, only, m.SHA256)
}

// Package is what the go command says of a package; Module is nil for the standard
// library.
type Package struct {
	Dir    string
	Module *struct {
		Path, Version, Dir string
		Main               bool
	}
}

// Packages lists what osctl is linked from on the machines of the layer: x86_64,
// without cgo. top is the top of the repository, env what the environment has
// beyond that of this process.
func Packages(ctx context.Context, top string, env ...string) ([]Package, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-deps", "-json=Dir,Module", "./cmd/osctl")
	cmd.Dir = top
	cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=-modcacherw", "GOWORK=off"), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("listing packages: %w\n%s", err, &stderr)
	}
	var list []Package
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p Package
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return list, nil
		} else if err != nil {
			return nil, fmt.Errorf("listing packages: %w", err)
		}
		list = append(list, p)
	}
}

// Generate makes the contents of [ModulesFile] and [LicensesFile]. cache is an empty
// folder that becomes a module cache: what the go command fetches into it is what
// bitbake has to fetch. Modules come from this machine's own cache where it has them.
func Generate(ctx context.Context, top, cache string) (modules, licenses string, err error) {
	proxy, err := goEnv(ctx, top, "GOMODCACHE", "GOPROXY")
	if err != nil {
		return "", "", err
	}
	// From a proxy that lacks a module the go command goes on to the next.
	packages, err := Packages(ctx, top, "GOMODCACHE="+cache, "GOSUMDB=off",
		"GOPROXY=file://"+filepath.Join(proxy[0], "cache/download")+","+proxy[1])
	if err != nil {
		return "", "", err
	}
	list, err := fetched(filepath.Join(cache, "cache/download"))
	if err != nil {
		return "", "", err
	}
	files, err := licenseFiles(packages, cache)
	if err != nil {
		return "", "", err
	}
	return assignment("SRC_URI", list), formatLicenses(files), nil
}

func goEnv(ctx context.Context, top string, names ...string) ([]string, error) {
	cmd := exec.CommandContext(ctx, "go", append([]string{"env"}, names...)...)
	cmd.Dir = top
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("asking go env: %w", err)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n"), nil
}

// fetched lists what is in the download folder of a module cache.
func fetched(dir string) ([]Module, error) {
	var list []Module
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		ext := filepath.Ext(path)
		if err != nil || d.IsDir() || ext != ".zip" && ext != ".mod" {
			return err
		}
		stem := strings.TrimSuffix(path, ext)
		if _, err := os.Stat(stem + ".zip"); ext == ".mod" && err == nil {
			return nil // the zip file has it
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		escaped, err := filepath.Rel(dir, filepath.Dir(filepath.Dir(path)))
		if err != nil {
			return err
		}
		sum := sha256.Sum256(data)
		list = append(list, Module{unescape(escaped), unescape(filepath.Base(stem)), ext == ".mod", hex.EncodeToString(sum[:])})
		return nil
	})
	slices.SortFunc(list, func(a, b Module) int { return strings.Compare(a.String(), b.String()) })
	return list, err
}

// unescape brings back the capital letters that file names of a module cache have
// as "!" and a small one (https://go.dev/ref/mod#module-cache).
func unescape(s string) string {
	var b strings.Builder
	upper := false
	for _, r := range s {
		switch {
		case r == '!':
			upper = true
			continue
		case upper:
			r = unicode.ToUpper(r)
		}
		upper = false
		b.WriteRune(r)
	}
	return b.String()
}

// assignment appends a list to a variable, one item a line.
func assignment[T fmt.Stringer](name string, list []T) string {
	var b strings.Builder
	b.WriteString(notice + name + " += \"\\\n")
	for _, item := range list {
		b.WriteString("    " + item.String() + " \\\n")
	}
	b.WriteString("\"\n")
	return b.String()
}
