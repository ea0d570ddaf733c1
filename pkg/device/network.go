package device

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Network reads the state of this machine's network from the kernel's files. The zero
// value reads the machine's own; tests give it directories. It remembers who held the
// sockets of the last reading, and is safe for concurrent use.
type Network struct {
	Proc string // "" is /proc
	Sys  string // "" is /sys
	Run  string // "" is /run

	mu   sync.Mutex
	last holders
}

// NetworkFacts is what Network reads. All lists are sorted and name nothing twice.
type NetworkFacts struct {
	// Routes are the default routes and those by a gateway, each with the interface
	// that it leads out of: "ipv4 default dev eth0", "ipv6 fd00:1::/64 dev eth1".
	Routes []string
	// Listening are the ports that system services listen on, and by which unit: "tcp/22
	// ssh.service", "udp/localhost:323 chrony.service". A socket that systemd itself
	// holds for a service belongs to "systemd".
	Listening []string
	// Unplugged are the interfaces that are up and have no carrier.
	Unplugged []string
}

// Facts reads the present state. It needs root: the sockets of other users' processes
// are not seen without.
//
// Left out of the routes is what comes with an address: networks on the link,
// local and multicast addresses. Left out of the ports is what does not have to be
// there again: ports out of the range from which the kernel hands them out, sockets that
// are bound to one address of an interface, those of sessions, of containers, of
// osctl and of transient units, and those of clients and of names on the link (DHCP,
// mDNS, LLMNR), which come and go with a cable.
func (n *Network) Facts(ctx context.Context) (NetworkFacts, error) {
	var f NetworkFacts
	var err error
	if f.Routes, err = n.routes(); err != nil {
		return NetworkFacts{}, fmt.Errorf("reading the routes: %w", err)
	}
	if f.Listening, err = n.listening(ctx); err != nil {
		return NetworkFacts{}, fmt.Errorf("reading the listening sockets: %w", err)
	}
	if f.Unplugged, err = n.unplugged(); err != nil {
		return NetworkFacts{}, fmt.Errorf("reading the interfaces: %w", err)
	}
	return f, nil
}

func (n *Network) proc() string { return cmp.Or(n.Proc, "/proc") }

// The flags of a route, include/uapi/linux/route.h and ipv6_route.h in the kernel.
const (
	routeUp      = 0x0001     // RTF_UP
	routeGateway = 0x0002     // RTF_GATEWAY
	routeReject  = 0x0200     // RTF_REJECT
	routeLearnt  = 0x01000000 // RTF_CACHE: an exception, not a route
	routeLocal   = 0x80000000 // RTF_LOCAL
)

func (n *Network) routes() ([]string, error) {
	found := map[string]bool{}
	for _, table := range []struct {
		name  string
		parse func(fields []string) (route, error)
	}{{"route", parseRoute}, {"ipv6_route", parseRoute6}} {
		err := lines(filepath.Join(n.proc(), "net", table.name), func(fields []string) error {
			r, err := table.parse(fields)
			if err == nil && r.counts() {
				found[r.String()] = true
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return slices.Sorted(maps.Keys(found)), nil
}

// route is one line of a table.
type route struct {
	to    netip.Prefix
	dev   string
	flags uint64
}

func (r route) counts() bool {
	return r.flags&routeUp != 0 && r.flags&(routeReject|routeLearnt|routeLocal) == 0 && r.dev != "lo" &&
		(r.flags&routeGateway != 0 || r.to.Bits() == 0)
}

func (r route) String() string {
	family, to := "ipv4", r.to.String()
	if r.to.Addr().Is6() {
		family = "ipv6"
	}
	if r.to.Bits() == 0 {
		to = "default"
	}
	return family + " " + to + " dev " + r.dev
}

// parseRoute reads a line of /proc/net/route, the main table of IPv4, as
// fib_route_seq_show in net/ipv4/fib_trie.c writes it: interface, destination,
// gateway, flags, three counters, mask; numbers in hexadecimal, addresses as the
// machine's integers.
func parseRoute(fields []string) (route, error) {
	if fields[0] == "Iface" {
		return route{}, nil
	}
	if len(fields) < 8 {
		return route{}, fmt.Errorf("a route of %d fields", len(fields))
	}
	to, err := parseWords(fields[1])
	if err != nil {
		return route{}, err
	}
	mask, err := strconv.ParseUint(fields[7], 16, 32)
	if err != nil {
		return route{}, err
	}
	flags, err := strconv.ParseUint(fields[3], 16, 32)
	if err != nil {
		return route{}, err
	}
	bits := 0
	for ; mask != 0; mask &= mask - 1 {
		bits++
	}
	return route{netip.PrefixFrom(to, bits), fields[0], flags}, nil
}

// parseRoute6 reads a line of /proc/net/ipv6_route, all tables of IPv6, as
// rt6_info_route in net/ipv6/route.c writes it: destination and its length, source and
// its length, gateway, three counters, flags, interface; addresses as bytes.
func parseRoute6(fields []string) (route, error) {
	if len(fields) < 10 {
		return route{}, fmt.Errorf("a route of %d fields", len(fields))
	}
	raw, err := hex.DecodeString(fields[0])
	if err != nil {
		return route{}, err
	}
	to, ok := netip.AddrFromSlice(raw)
	if !ok || !to.Is6() {
		return route{}, fmt.Errorf("address %q", fields[0])
	}
	bits, err := strconv.ParseUint(fields[1], 16, 8)
	if err != nil {
		return route{}, err
	}
	flags, err := strconv.ParseUint(fields[8], 16, 32)
	if err != nil {
		return route{}, err
	}
	return route{netip.PrefixFrom(to, int(bits)), fields[9], flags}, nil
}

// parseWords reads an address that is written as integers of four bytes in the
// machine's own order.
func parseWords(text string) (netip.Addr, error) {
	raw, err := hex.DecodeString(text)
	if err != nil {
		return netip.Addr{}, err
	}
	for i := 0; i+4 <= len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	addr, ok := netip.AddrFromSlice(raw)
	if !ok {
		return netip.Addr{}, fmt.Errorf("address %q", text)
	}
	return addr.Unmap(), nil
}

// unplugged are the interfaces whose carrier is 0. It cannot be read of one that is
// not up, which is the doing of the system and of nobody's cable.
func (n *Network) unplugged() ([]string, error) {
	names, err := filepath.Glob(filepath.Join(cmp.Or(n.Sys, "/sys"), "class/net/*/carrier"))
	if err != nil {
		return nil, err
	}
	var found []string
	for _, name := range names {
		if text, err := os.ReadFile(name); err == nil && strings.TrimSpace(string(text)) == "0" {
			found = append(found, filepath.Base(filepath.Dir(name)))
		}
	}
	slices.Sort(found)
	return found, nil
}

// lines calls f with the fields of each line that has any. A file that is not there
// has none: a kernel without that protocol.
func lines(name string, f func(fields []string) error) error {
	data, err := os.ReadFile(name)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for scanner := bufio.NewScanner(bytes.NewReader(data)); scanner.Scan(); {
		fields := strings.Fields(scanner.Text())
		if len(fields) == 0 {
			continue
		}
		if err := f(fields); err != nil {
			return fmt.Errorf("%s: line %q: %w", name, scanner.Text(), err)
		}
	}
	return nil
}
