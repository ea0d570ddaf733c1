// Package vm runs a machine in QEMU for the machine test and the demonstration.
//
// The machine is a PC with UEFI firmware, one virtio disk, a user-mode network
// and a serial console, emulated without KVM, so that it runs anywhere. The
// package knows how to start it, follow its console, run commands over ssh and
// cut its power; it refuses to know what is on the disk.
//
// It promises that no QEMU outlives the process that started it, that waiting is
// for events, and that every error shows the last lines of the console.
package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
)

// ErrEnded is returned by whatever needs a machine that no longer runs.
var ErrEnded = errors.New("the machine has ended")

// Firmware of Debian's package ovmf.
const (
	firmwareCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	firmwareVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// tailLines is how much of the console an error shows.
const tailLines = 30

// Config describes a machine.
type Config struct {
	// Disk is the raw image that the machine boots and writes.
	Disk string
	// Dir holds what belongs to the machine beside its disk: the firmware's
	// variables (kept from one start to the next), the console log
	// "console.log" (appended to) and QEMU's messages "qemu.log". It is made if
	// it does not exist.
	Dir string
	// WriteLog, if any, is a file that takes every write to the disk, in order
	// (package writelog). It is made anew.
	WriteLog string
	// Memory is in MiB; zero is 1024.
	Memory int
	// Device is how the disk is attached, in QEMU's words with drive=disk; empty
	// is virtio.
	Device string
	// Watchdog adds a hardware watchdog (i6300esb) that resets the machine.
	Watchdog bool
	// Counted gives the machine one processor, and a clock that counts its instructions: a
	// nanosecond for each, what a core of 1 GHz takes that never does two at a time. What
	// the machine says of its own time then does not depend on this host; but it is slow.
	Counted bool
	// USB gives the machine USB sockets (xhci), see [Machine.Plug].
	USB bool
	// Forwards are the ports of the machine that can be reached on 127.0.0.1.
	// Port 22 is always among them.
	Forwards []Forward
	// Key logs root in over ssh.
	Key ssh.Signer
	// Console, if any, gets the console's text as well, as it comes and without
	// terminal control sequences.
	Console io.Writer
}

// Forward makes a port of the machine reachable on 127.0.0.1.
type Forward struct {
	Guest int
	Host  int // zero: a free one, see [Machine.Addr]
}

// Machine is a running machine. Its methods may be called at the same time,
// except that one goroutine at a time waits for the console.
type Machine struct {
	config  Config
	console *console
	monitor *monitor
	keys    io.Writer   // the console's input
	ports   map[int]int // guest port to host port
	process *os.Process
	ended   chan struct{} // closed when QEMU has ended
	result  error         // how QEMU ended; read after ended
	login   login
	closing sync.Once
	closed  error // what closing met
}

// Start switches a machine on. It returns when QEMU runs, long before the
// machine has booted. The context is for starting only.
func Start(ctx context.Context, config Config) (*Machine, error) {
	if err := os.MkdirAll(config.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the machine's folder: %w", err)
	}
	vars := filepath.Join(config.Dir, "vars.fd")
	if err := copyOnce(firmwareVars, vars); err != nil {
		return nil, fmt.Errorf("preparing the firmware's variables (package ovmf): %w", err)
	}
	log, err := os.OpenFile(filepath.Join(config.Dir, "console.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("opening the console log: %w", err)
	}
	m := &Machine{
		config:  config,
		console: newConsole(log, config.Console),
		ended:   make(chan struct{}),
	}
	if err := m.launch(vars); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	if m.ports, err = m.monitor.forwards(ctx); err != nil {
		closed := m.Close() // first: the reason is in what QEMU says at its end
		return nil, errors.Join(m.explain("asking QEMU for its ports", err), closed)
	}
	return m, nil
}

// launch starts QEMU with the console on its standard streams and the monitor
// on an inherited socket.
func (m *Machine) launch(vars string) error {
	messages, err := os.Create(filepath.Join(m.config.Dir, "qemu.log"))
	if err != nil {
		return fmt.Errorf("making QEMU's log: %w", err)
	}
	if m.config.WriteLog != "" {
		if err := os.WriteFile(m.config.WriteLog, nil, 0o600); err != nil {
			return errors.Join(fmt.Errorf("making the log of writes: %w", err), messages.Close())
		}
	}
	defer messages.Close()
	monitor, remote, err := newMonitor()
	if err != nil {
		return err
	}
	defer remote.Close()
	m.monitor = monitor

	stdin, keys, err := os.Pipe()
	if err != nil {
		return errors.Join(fmt.Errorf("making a pipe: %w", err), monitor.close())
	}
	defer stdin.Close()
	m.keys = keys

	cmd := exec.Command("qemu-system-x86_64", m.arguments(vars)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, m.console, messages
	cmd.ExtraFiles = []*os.File{remote}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}

	started := make(chan error, 1)
	go func() {
		// The signal is sent when the thread that started the process dies, so
		// that thread must live as long as this process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		m.process = cmd.Process
		started <- err
		if err == nil {
			m.result = cmd.Wait()
			m.console.close()
			keys.Close()
			close(m.ended)
		}
	}()
	if err := <-started; err != nil {
		return errors.Join(fmt.Errorf("starting QEMU (package qemu-system-x86): %w", err), keys.Close(), monitor.close())
	}
	return nil
}

// arguments is QEMU's command line.
func (m *Machine) arguments(vars string) []string {
	memory := m.config.Memory
	if memory == 0 {
		memory = 1024
	}
	device := m.config.Device
	if device == "" {
		device = "virtio-blk-pci,drive=disk"
	}
	var more []string
	if m.config.Watchdog {
		more = []string{"-device", "i6300esb", "-action", "watchdog=reset"}
	}
	processors, accelerator := "2", "tcg,thread=multi,tb-size=512"
	if m.config.Counted {
		processors, accelerator = "1", "tcg,thread=single,tb-size=512"
		more = append(more, "-icount", "shift=0")
	}
	if m.config.USB {
		more = append(more, "-device", "qemu-xhci")
	}
	network := "user,id=net,hostfwd=tcp:127.0.0.1:0-:22"
	for _, f := range m.config.Forwards {
		rule := fmt.Sprintf("hostfwd=tcp:127.0.0.1:%d-:%d", f.Host, f.Guest)
		if f.Guest == 22 {
			network = strings.Replace(network, "hostfwd=tcp:127.0.0.1:0-:22", rule, 1)
		} else {
			network += "," + rule
		}
	}
	return append([]string{
		"-nodefaults", "-display", "none", "-no-user-config",
		"-machine", "q35", "-cpu", "max", "-smp", processors, "-m", fmt.Sprint(memory),
		"-accel", accelerator,
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=" + escape(firmwareCode),
		"-drive", "if=pflash,format=raw,unit=1,file=" + escape(vars),
		"-blockdev", m.disk(),
		"-device", device,
		// Without a ROM: nothing boots from this network.
		"-netdev", network, "-device", "virtio-net-pci,netdev=net,romfile=",
		"-object", "rng-random,id=entropy,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=entropy",
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-chardev", "socket,id=monitor,fd=3", "-mon", "chardev=monitor,mode=control",
	}, more...)
}

// disk is the block device "disk", as JSON.
func (m *Machine) disk() string {
	if m.config.WriteLog == "" {
		return fmt.Sprintf(`{"node-name": "disk", %s}`, rawFile(m.config.Disk))
	}
	return fmt.Sprintf(`{"node-name": "disk", "driver": "blklogwrites", "log-sector-size": 512, "file": {%s}, "log": {%s}}`,
		rawFile(m.config.Disk), rawFile(m.config.WriteLog))
}

func rawFile(path string) string {
	return fmt.Sprintf(`"driver": "raw", "file": {"driver": "file", "filename": %q}`, path)
}

// escape makes a path a value of a QEMU option, where a comma is doubled.
func escape(path string) string { return strings.ReplaceAll(path, ",", ",,") }

// Addr is the address on this host that leads to a port of the machine, such as
// "127.0.0.1:40123". It is empty for a port that is not forwarded.
func (m *Machine) Addr(guest int) string {
	port, ok := m.ports[guest]
	if !ok {
		return ""
	}
	return fmt.Sprintf("127.0.0.1:%d", port)
}

// Wait waits until a line of the console matches and returns the line. The
// search begins after the line that the last successful Wait returned, so that a
// second boot is not taken for the first. A line that is still being printed,
// such as a prompt, counts.
func (m *Machine) Wait(ctx context.Context, line *regexp.Regexp) (string, error) {
	found, err := m.console.wait(ctx, line)
	if err != nil {
		return "", m.explain(fmt.Sprintf("waiting for %q on the console", line), err)
	}
	return found, nil
}

// Type enters a line at the console.
func (m *Machine) Type(line string) error {
	if _, err := io.WriteString(m.keys, line+"\r"); err != nil {
		return m.explain("typing at the console", err)
	}
	return nil
}

// Plug plugs a USB stick into the running machine: a raw image, which the machine may
// read only. The machine has to have sockets, see [Config].
func (m *Machine) Plug(ctx context.Context, image string) error {
	for _, c := range []struct {
		command   string
		arguments any
	}{
		{"blockdev-add", map[string]any{
			"node-name": "stick", "driver": "raw", "read-only": true,
			"file": map[string]any{"driver": "file", "filename": image},
		}},
		{"device_add", map[string]any{"driver": "usb-storage", "drive": "stick"}},
	} {
		if _, err := m.monitor.execute(ctx, c.command, c.arguments); err != nil {
			return m.explain("plugging a USB stick in", err)
		}
	}
	return nil
}

// PowerCut takes the power away: the machine stops at this instant, and what it
// had not yet written to its disk is lost. It returns when QEMU has ended; the
// disk can be started again.
func (m *Machine) PowerCut(ctx context.Context) error {
	return m.end(ctx, "cutting the power", "quit")
}

// PowerOff presses the power button and waits until the machine has shut down.
func (m *Machine) PowerOff(ctx context.Context) error {
	return m.end(ctx, "shutting down", "system_powerdown")
}

// Reset presses the reset button: a power cut after which the machine starts
// again by itself.
func (m *Machine) Reset(ctx context.Context) error {
	if _, err := m.monitor.execute(ctx, "system_reset", nil); err != nil {
		return m.explain("resetting the machine", err)
	}
	m.login.close()
	return nil
}

// end sends a command that ends QEMU, and waits for the end.
func (m *Machine) end(ctx context.Context, doing, command string) error {
	_, err := m.monitor.execute(ctx, command, nil)
	if err != nil && !errors.Is(err, ErrEnded) {
		return m.explain(doing, err)
	}
	select {
	case <-m.ended:
		return nil
	case <-ctx.Done():
		return m.explain(doing, context.Cause(ctx))
	}
}

// Close ends the machine however it is and frees what belongs to it. The disk,
// the firmware's variables and the logs stay. A second Close does nothing more.
func (m *Machine) Close() error {
	select {
	case <-m.ended:
	default:
		if err := m.process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("ending QEMU: %w", err)
		}
		<-m.ended
	}
	m.login.close()
	m.closing.Do(func() { m.closed = errors.Join(m.monitor.close(), m.console.closeLog()) })
	return m.closed
}

// Tail is the end of the console's text, at most so many lines.
func (m *Machine) Tail(lines int) string { return m.console.tail(lines) }

// explain says what was being done, why it did not work, how QEMU ended if it
// did, and what the console showed last.
func (m *Machine) explain(doing string, err error) error {
	ended := ""
	select {
	case <-m.ended:
		messages, _ := os.ReadFile(filepath.Join(m.config.Dir, "qemu.log"))
		ended = fmt.Sprintf("\nQEMU ended (%v): %s", m.result, strings.TrimSpace(string(messages)))
	default:
	}
	return fmt.Errorf("%s: %w%s\nthe console's last lines:\n%s", doing, err, ended, m.console.tail(tailLines))
}

// copyOnce copies a file unless the copy exists.
func copyOnce(from, to string) error {
	if _, err := os.Stat(to); err == nil {
		return nil
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o644)
}

// retryPause is how long to wait before another try of something that has no
// event to wait for: it starts at a fifth of a second and ends at two.
func retryPause(try int) time.Duration {
	return min(200*time.Millisecond<<min(try, 4), 2*time.Second)
}
