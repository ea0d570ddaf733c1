package workload

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/runtime/restart"
	"golang.org/x/sys/unix"

	"github.com/kapernikov/osctl/pkg/health"
)

// What nerdctl writes on its containers (pkg/labels/labels.go of v2.2.1).
const (
	nameLabel        = "nerdctl/name"
	stateDirLabel    = "nerdctl/state-dir"
	portsLabel       = "nerdctl/ports" // before v2.2; today in networkFile
	healthCheckLabel = "nerdctl/healthcheck"
	healthStateLabel = "nerdctl/healthstate"
	projectLabel     = "com.docker.compose.project"
	serviceLabel     = "com.docker.compose.service"
)

// networkFile is where nerdctl keeps a container's published ports, in its folder of
// the container (its pkg/netutil/networkstore).
const networkFile = "network-config.json"

// describe reads what the container's own record says.
func describe(space string, record containers.Container) health.Workload {
	labels := record.Labels
	w := health.Workload{
		Namespace: space,
		ID:        record.ID,
		Name:      labels[nameLabel],
		Image:     record.Image,
		Project:   labels[projectLabel],
		Service:   labels[serviceLabel],
		Ports:     publishedPorts(labels),
		Health:    healthState(labels),
		Declared:  Declare(labels),
	}
	// The restart monitor looks only at containers with the status label; one
	// without a policy is restarted always.
	if status := labels[restart.StatusLabel]; status == string(containerd.Running) {
		w.Restart = labels[restart.PolicyLabel]
		if w.Restart == "" {
			w.Restart = "always"
		}
	}
	if w.Restart == "no" {
		w.Restart = ""
	}
	if n, err := strconv.Atoi(labels[restart.CountLabel]); err == nil && n > 0 {
		w.Restarts = n
	}
	return w
}

// healthState is what nerdctl's health check says, and starting when there is one
// that has not been run yet.
func healthState(labels map[string]string) string {
	var check struct{ Test []string }
	if json.Unmarshal([]byte(labels[healthCheckLabel]), &check) != nil || len(check.Test) == 0 || check.Test[0] == "NONE" || check.Test[0] == "" {
		return ""
	}
	var state struct{ Status string }
	if json.Unmarshal([]byte(labels[healthStateLabel]), &state) == nil {
		switch state.Status {
		case "starting", "healthy", "unhealthy":
			return state.Status
		}
	}
	return "starting"
}

// mapping is one published port, as go-cni writes it.
type mapping struct {
	HostPort int32
	Protocol string
	HostIP   string
}

// publishedPorts are the ports of the host that lead to the container. They are for
// people: what cannot be read is left out.
func publishedPorts(labels map[string]string) []string {
	var config struct{ PortMappings []mapping }
	if dir := labels[stateDirLabel]; filepath.IsAbs(dir) {
		if data, err := readFile(filepath.Join(dir, networkFile)); err == nil {
			_ = json.Unmarshal(data, &config)
		}
	}
	list := config.PortMappings
	if len(list) == 0 {
		_ = json.Unmarshal([]byte(labels[portsLabel]), &list)
	}
	var ports []string
	for _, m := range list {
		if m.HostPort <= 0 || m.HostPort > 65535 {
			continue
		}
		port := strconv.Itoa(int(m.HostPort))
		if ip := net.ParseIP(m.HostIP); ip != nil && !ip.IsUnspecified() {
			port = net.JoinHostPort(ip.String(), port)
		}
		switch m.Protocol {
		case "tcp", "udp", "sctp":
			ports = append(ports, m.Protocol+"/"+port)
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// readFile reads a small regular file. The path is in a label, so anything may be
// there: a pipe would block whoever opens it.
func readFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, os.ErrInvalid
	}
	return io.ReadAll(io.LimitReader(f, 1<<20))
}
