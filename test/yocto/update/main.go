// Command update writes the lists of Go modules and licences of osctl's recipe in
// the Yocto layer, for `make yocto-modules`. It runs at the top of the repository
// and refuses licences that it does not know.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/kapernikov/osctl/test/yocto"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	os.Exit(run(ctx, os.Stderr))
}

func run(ctx context.Context, stderr io.Writer) int {
	if err := update(ctx, "."); err != nil {
		fmt.Fprintln(stderr, "update:", err)
		return 1
	}
	return 0
}

func update(ctx context.Context, top string) (err error) {
	cache, err := os.MkdirTemp("", "osctl-modules-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(cache)) }()
	modules, licenses, err := yocto.Generate(ctx, top, cache)
	if err != nil {
		return err
	}
	for line := range strings.Lines(licenses) {
		if strings.Contains(line, "spdx="+yocto.Unknown) {
			return fmt.Errorf("teach test/yocto/licenses.go this licence: %s", strings.TrimSpace(line))
		}
	}
	for name, content := range map[string]string{yocto.ModulesFile: modules, yocto.LicensesFile: licenses} {
		if err := os.WriteFile(filepath.Join(top, yocto.Recipe, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}
