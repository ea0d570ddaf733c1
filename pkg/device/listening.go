package device

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// manager is who holds the sockets of process 1.
const manager = "systemd"

// holders is who was found to hold a set of sockets.
type holders struct {
	sockets map[string]string // ports by inodes
	found   []string
}

// recall returns what was found for these very sockets. They are the same as long as
// their inodes are, and so is who opened them.
func (n *Network) recall(sockets map[string]string) ([]string, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.last.found), n.last.sockets != nil && maps.Equal(n.last.sockets, sockets)
}

// remember keeps what was found, but not while systemd holds a socket for a service
// that may take it over.
func (n *Network) remember(sockets, owners map[string]string, found []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.last = holders{}
	for _, port := range sockets {
		if owner := owners[port]; owner == "" || owner == manager {
			return
		}
	}
	n.last = holders{sockets, slices.Clone(found)}
}

// listening finds the sockets, and then the processes of services that hold them: to
// look through all processes costs more than all the rest, so it is done for sockets
// that were not there before.
func (n *Network) listening(ctx context.Context) ([]string, error) {
	sockets, err := n.sockets()
	if err != nil || len(sockets) == 0 {
		return nil, err
	}
	if found, ok := n.recall(sockets); ok {
		return found, nil
	}
	processes, err := os.ReadDir(n.proc())
	if err != nil {
		return nil, err
	}
	owners := map[string]string{} // by port
	for _, p := range processes {
		if _, err := strconv.ParseUint(p.Name(), 10, 32); err != nil {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		unit := n.unit(p.Name())
		if unit == "" {
			continue
		}
		for _, port := range n.held(p.Name(), sockets) {
			// The smallest name, so that two looks say the same of a socket that two
			// services share.
			if known := owners[port]; known == "" || unit < known {
				owners[port] = unit
			}
		}
	}
	var found []string
	for port, unit := range owners {
		found = append(found, port+" "+unit)
	}
	slices.Sort(found)
	n.remember(sockets, owners, found)
	return found, nil
}

// The states of a socket, include/net/tcp_states.h in the kernel. UDP, which has
// none, is TCP_CLOSE while it is not connected.
const (
	stateClose  = "07"
	stateListen = "0A"
)

// sockets returns the ports that count, by the inodes of their sockets. The format of
// the files is in Documentation/networking/proc_net_tcp.rst of the kernel.
func (n *Network) sockets() (map[string]string, error) {
	low, high := n.handedOut()
	found := map[string]string{}
	for _, table := range []struct{ name, protocol, state string }{
		{"tcp", "tcp", stateListen}, {"tcp6", "tcp", stateListen}, {"udp", "udp", stateClose}, {"udp6", "udp", stateClose},
	} {
		err := lines(filepath.Join(n.proc(), "net", table.name), func(fields []string) error {
			if fields[0] == "sl" || len(fields) < 10 || fields[3] != table.state {
				return nil
			}
			address, hexPort, _ := strings.Cut(fields[1], ":")
			addr, err := parseWords(address)
			if err != nil {
				return err
			}
			port, err := strconv.ParseUint(hexPort, 16, 16)
			if err != nil {
				return err
			}
			if port == 0 || port >= low && port <= high || comesAndGoes(table.protocol, port) {
				return nil
			}
			switch {
			case addr.IsUnspecified():
				found[fields[9]] = fmt.Sprintf("%s/%d", table.protocol, port)
			case addr.IsLoopback():
				found[fields[9]] = fmt.Sprintf("%s/localhost:%d", table.protocol, port)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// comesAndGoes names the ports that are open as long as some link is: of DHCP clients
// (RFC 2131, 8415), of mDNS (RFC 6762) and of LLMNR (RFC 4795).
func comesAndGoes(protocol string, port uint64) bool {
	switch port {
	case 68, 546, 5353:
		return protocol == "udp"
	case 5355:
		return true
	}
	return false
}

// handedOut is the range of ports that nobody chose, as
// Documentation/networking/ip-sysctl.rst of the kernel has it.
func (n *Network) handedOut() (low, high uint64) {
	low, high = 32768, 60999
	text, err := os.ReadFile(filepath.Join(n.proc(), "sys/net/ipv4/ip_local_port_range"))
	if err != nil {
		return low, high
	}
	fields := strings.Fields(string(text))
	if len(fields) != 2 {
		return low, high
	}
	a, errLow := strconv.ParseUint(fields[0], 10, 16)
	b, errHigh := strconv.ParseUint(fields[1], 10, 16)
	if errLow != nil || errHigh != nil {
		return low, high
	}
	return a, b
}

// unit is the system service that a process belongs to, by its control group; "" for
// all other processes.
func (n *Network) unit(pid string) string {
	var group string
	err := lines(filepath.Join(n.proc(), pid, "cgroup"), func(fields []string) error {
		// hierarchy:controllers:path, cgroups(7); systemd's own is 0 or name=systemd.
		parts := strings.SplitN(strings.Join(fields, " "), ":", 3)
		if len(parts) == 3 && (parts[0] == "0" || parts[1] == "name=systemd") && group == "" {
			group = parts[2]
		}
		return nil
	})
	if err != nil {
		return ""
	}
	if pid == "1" && group == "/init.scope" {
		return manager
	}
	rest, ok := strings.CutPrefix(group, "/system.slice/")
	if !ok {
		return ""
	}
	for part := range strings.SplitSeq(rest, "/") {
		if !strings.HasSuffix(part, ".service") {
			continue
		}
		if strings.HasPrefix(part, "osctl") || n.transient(part) {
			return ""
		}
		return part
	}
	return ""
}

// transient reports whether a unit was made at run time and is gone after a reboot,
// systemd.unit(5).
func (n *Network) transient(unit string) bool {
	_, err := os.Lstat(filepath.Join(cmp.Or(n.Run, "/run"), "systemd/transient", unit))
	return err == nil
}

// held are the ports of the sockets that a process has open. One that ended meanwhile
// has none.
func (n *Network) held(pid string, sockets map[string]string) []string {
	dir := filepath.Join(n.proc(), pid, "fd")
	open, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var ports []string
	for _, fd := range open {
		if fd.Type()&fs.ModeSymlink == 0 {
			continue
		}
		target, err := os.Readlink(filepath.Join(dir, fd.Name()))
		if err != nil {
			continue
		}
		if inode, ok := strings.CutPrefix(target, "socket:["); ok {
			if port := sockets[strings.TrimSuffix(inode, "]")]; port != "" {
				ports = append(ports, port)
			}
		}
	}
	return ports
}
