// Command demo shows a machine that upgrades its own operating system, as a
// transcript: "make demo". With -stay it leaves such a machine up for trying
// things by hand: "make run".
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/kapernikov/osctl/test/machine"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	stay := flags.Bool("stay", false, "boot release 1.0 and leave the machine up")
	if err := flags.Parse(args); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "osctl-demo-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	t := &transcript{out: out, start: time.Now()}
	site, err := machine.NewSite(ctx, dir, t)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, site.Close()) }()
	story, err := machine.Begin(ctx, site, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, story.Machine.Close()) }()
	if *stay {
		return leaveUp(ctx, site, story, out)
	}
	if err := story.Tell(ctx); err != nil {
		return err
	}
	t.Title("Done")
	fmt.Fprintln(t.Output(), "The machine upgraded itself, went back by itself, and lost nothing.")
	return nil
}

// leaveUp tells how to get in, and waits for the end.
func leaveUp(ctx context.Context, site *machine.Site, story *machine.Story, out io.Writer) error {
	host, port, _ := strings.Cut(story.Machine.Addr(22), ":")
	fmt.Fprintf(out, `
The machine is up. In another terminal:

  ssh -i %s -p %s -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null root@%s

There, for example:

  osctl status
  osctl upgrade %s --reboot

Port 8080 of the machine is http://%s/. Ctrl-C switches it off.
`, site.SSHKey(), port, host, site.Ref("os:1.1"), story.Machine.Addr(8080))
	<-ctx.Done()
	return nil
}

// transcript prints the story: titles with the time since the start, commands
// behind their prompts, output indented.
type transcript struct {
	out   io.Writer
	start time.Time
}

func (t *transcript) Title(text string) {
	at := time.Since(t.start).Round(time.Second)
	fmt.Fprintf(t.out, "\n== %s %s %d:%02d\n", text, strings.Repeat("=", max(4, 66-len(text))), int(at.Minutes()), int(at.Seconds())%60)
}

func (t *transcript) Command(prompt, command string) {
	fmt.Fprintf(t.out, "\n%s %s\n", prompt, command)
}

func (t *transcript) Output() io.Writer { return &indented{out: t.out} }

// indented writes lines behind two spaces.
type indented struct {
	out    io.Writer
	inLine bool
}

func (w *indented) Write(p []byte) (int, error) {
	for line := range strings.Lines(string(p)) {
		if !w.inLine && line != "\n" {
			if _, err := io.WriteString(w.out, "  "); err != nil {
				return 0, err
			}
		}
		if _, err := io.WriteString(w.out, line); err != nil {
			return 0, err
		}
		w.inLine = !strings.HasSuffix(line, "\n")
	}
	return len(p), nil
}
