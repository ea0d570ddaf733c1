package workload

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// netNamespace is the network of a container.
type netNamespace struct {
	handle *os.File
	hosts  map[string][]string // addresses by the names in its /etc/hosts
}

// openNetwork opens the network namespace of a process. The process may have ended
// and its number been given away: the caller makes sure of that afterwards, since what
// is open stays the same.
func openNetwork(pid uint32) (*netNamespace, error) {
	handle, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, fmt.Errorf("opening its network: %w", err)
	}
	return &netNamespace{handle: handle, hosts: readHosts(fmt.Sprintf("/proc/%d/root", pid))}, nil
}

func (n *netNamespace) Close() error { return n.handle.Close() }

// readHosts reads etc/hosts below root, without being led out of it by a link. There
// need not be one.
func readHosts(root string) map[string][]string {
	dir, err := os.OpenRoot(root)
	if err != nil {
		return nil
	}
	defer dir.Close()
	f, err := dir.OpenFile("etc/hosts", os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil
	}
	return parseHosts(f)
}

func parseHosts(r io.Reader) map[string][]string {
	hosts := map[string][]string{}
	lines := bufio.NewScanner(io.LimitReader(r, 1<<20))
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		words := strings.Fields(line)
		if len(words) < 2 || net.ParseIP(words[0]) == nil {
			continue
		}
		for _, name := range words[1:] {
			name = strings.ToLower(name)
			hosts[name] = append(hosts[name], words[0])
		}
	}
	return hosts
}

// addresses are those that a host may mean in this network. Name servers are not
// asked: this machine's know nothing of the container's network.
func (n *netNamespace) addresses(host string) ([]string, error) {
	switch name := strings.ToLower(host); {
	case net.ParseIP(host) != nil:
		return []string{host}, nil
	case name == "localhost":
		return []string{"127.0.0.1", "::1"}, nil
	case len(n.hosts[name]) > 0:
		return n.hosts[name], nil
	}
	return nil, fmt.Errorf("%s is no address, not localhost and not in the container's /etc/hosts", plain(host, 80))
}

// dial connects to an address in this network, to the first one that answers if the
// host has several.
func (n *netNamespace) dial(ctx context.Context, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	list, err := n.addresses(host)
	if err != nil {
		return nil, err
	}
	var errs []string
	for _, ip := range list {
		conn, err := n.dialOne(ctx, net.JoinHostPort(ip, port))
		if err == nil {
			return conn, nil
		}
		errs = append(errs, fmt.Sprintf("%s: %v", net.JoinHostPort(ip, port), reason(err)))
	}
	return nil, errors.New(strings.Join(errs, ", "))
}

// reason is what is wrong, without what is known of who asked whom.
func reason(err error) error {
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		err = op.Err
	}
	if call := (*os.SyscallError)(nil); errors.As(err, &call) {
		err = call.Err
	}
	return err
}

// dialOne connects to one address. A socket belongs to the network that its thread was
// in when it was made; for a single address, the dialer makes it on the thread of its
// caller.
func (n *netNamespace) dialOne(ctx context.Context, address string) (conn net.Conn, err error) {
	onThread(func() {
		if e := unix.Setns(int(n.handle.Fd()), unix.CLONE_NEWNET); e != nil {
			err = fmt.Errorf("entering the container's network: %w", e)
			return
		}
		var d net.Dialer
		conn, err = d.DialContext(ctx, "tcp", address)
	})
	return conn, err
}

// onThread runs f on a thread that nobody else gets, and ends the thread. It is never
// the first thread of the process, which does not end, and by which /proc/self shows
// what the process sees.
func onThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			onThread(f) // this thread is held meanwhile, so it is another one
			return
		}
		f() // a thread that is still locked when its goroutine ends, ends with it
	}()
	<-done
}
