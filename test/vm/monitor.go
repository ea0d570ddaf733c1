package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"sync"
	"syscall"
)

// monitor speaks QEMU's machine protocol: JSON objects, one a line, after a
// greeting and the command qmp_capabilities.
// https://www.qemu.org/docs/master/interop/qmp-spec.html
type monitor struct {
	mu      sync.Mutex
	conn    net.Conn
	replies *bufio.Scanner
	greeted bool
}

// newMonitor makes both ends of the connection; the file is QEMU's.
func newMonitor() (*monitor, *os.File, error) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making the monitor's socket: %w", err)
	}
	local, remote := os.NewFile(uintptr(pair[0]), "monitor"), os.NewFile(uintptr(pair[1]), "monitor")
	defer local.Close()
	conn, err := net.FileConn(local)
	if err != nil {
		remote.Close()
		return nil, nil, fmt.Errorf("making the monitor's socket: %w", err)
	}
	return &monitor{conn: conn, replies: bufio.NewScanner(conn)}, remote, nil
}

func (m *monitor) close() error { return m.conn.Close() }

// execute runs one command and returns its result. ErrEnded says that QEMU ended
// instead of answering.
func (m *monitor) execute(ctx context.Context, command string, arguments any) (json.RawMessage, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { m.conn.Close() })
	defer stop()
	if !m.greeted {
		if err := m.next(nil); err != nil {
			return nil, fmt.Errorf("reading QEMU's greeting: %w", err)
		}
		if _, err := m.call("qmp_capabilities", nil); err != nil {
			return nil, err
		}
		m.greeted = true
	}
	return m.call(command, arguments)
}

// call sends a command and reads up to its answer; events are passed over.
func (m *monitor) call(command string, arguments any) (json.RawMessage, error) {
	request, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return nil, fmt.Errorf("encoding the command %s: %w", command, err)
	}
	if _, err := m.conn.Write(append(request, '\n')); err != nil {
		return nil, fmt.Errorf("sending %s to QEMU: %w", command, err)
	}
	for {
		var reply struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		if err := m.next(&reply); err != nil {
			return nil, fmt.Errorf("reading QEMU's answer to %s: %w", command, err)
		}
		switch {
		case reply.Error != nil:
			return nil, fmt.Errorf("QEMU refuses %s: %s", command, reply.Error.Desc)
		case reply.Return != nil:
			return reply.Return, nil
		}
	}
}

// next reads one object.
func (m *monitor) next(into any) error {
	if !m.replies.Scan() {
		if err := m.replies.Err(); err != nil {
			return err
		}
		return ErrEnded
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(m.replies.Bytes(), into)
}

// forwardLine is a line of "info usernet" about a forwarded port: protocol and
// state, a descriptor, the address and port on the host and in the machine.
var forwardLine = regexp.MustCompile(`(?m)^\s*TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+(\d+)`)

// forwards asks which port of the host leads to which port of the machine. QEMU
// chose the free ones, so nobody else can have taken them in between.
func (m *monitor) forwards(ctx context.Context) (map[int]int, error) {
	answer, err := m.execute(ctx, "human-monitor-command", map[string]string{"command-line": "info usernet"})
	if err != nil {
		return nil, err
	}
	var text string
	if err := json.Unmarshal(answer, &text); err != nil {
		return nil, fmt.Errorf("reading the list of forwarded ports: %w", err)
	}
	ports := map[int]int{}
	for _, line := range forwardLine.FindAllStringSubmatch(text, -1) {
		host, errHost := strconv.Atoi(line[1])
		guest, errGuest := strconv.Atoi(line[2])
		if errHost == nil && errGuest == nil {
			ports[guest] = host
		}
	}
	if ports[22] == 0 {
		return nil, fmt.Errorf("port 22 is not forwarded: %q", text)
	}
	return ports, nil
}
