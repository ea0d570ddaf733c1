package workload

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

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

// transientUnits is where systemd keeps the units that live until the next boot. Among
// them is the timer by which nerdctl runs a health check: it is named by the
// container's ID (pkg/healthcheck/healthcheck_manager_linux.go).
const transientUnits = "/run/systemd/transient"

// describe reads what the container's own record says.
func (r *Reader) describe(space string, record containers.Container) health.Workload {
	labels := record.Labels
	w := health.Workload{
		Namespace: space,
		ID:        record.ID,
		Name:      labels[nameLabel],
		Image:     record.Image,
		Project:   labels[projectLabel],
		Service:   labels[serviceLabel],
		Ports:     publishedPorts(labels),
		Declared:  Declare(labels),
	}
	w.Health, w.Declared.HealthCheck = r.healthState(record)
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

// healthCheck is nerdctl's health check of a container.
type healthCheck struct {
	Test    []string
	Timeout time.Duration
}

// words are those of its command; none if it is switched off.
func (h healthCheck) words() []string {
	if len(h.Test) == 0 {
		return nil
	}
	switch kind, rest := h.Test[0], h.Test[1:]; {
	case kind == "CMD" && len(rest) > 0 && rest[0] != "":
		return rest
	case kind == "CMD-SHELL" && len(rest) > 0 && strings.TrimSpace(rest[0]) != "":
		return []string{"/bin/sh", "-c", strings.Join(rest, " ")}
	}
	return nil
}

// parseHealthCheck reads the label; its zero value is that there is none.
func parseHealthCheck(labels map[string]string) healthCheck {
	var h healthCheck
	if json.Unmarshal([]byte(labels[healthCheckLabel]), &h) != nil || len(h.words()) == 0 {
		return healthCheck{}
	}
	// Nerdctl's own value for none; the most is what the gate can wait for.
	if h.Timeout <= 0 {
		h.Timeout = 30 * time.Second
	}
	h.Timeout = min(h.Timeout, 2*time.Minute)
	return h
}

// healthState is what nerdctl's health check says, and starting when there is one
// that has not been run yet. The timer that runs it does not outlive a boot, and
// containerd, which starts the container then, knows nothing of it: what the label says
// is of the boot before. Then there is no state, and ask is how long a run may take.
func (r *Reader) healthState(record containers.Container) (state string, ask time.Duration) {
	check := parseHealthCheck(record.Labels)
	if len(check.Test) == 0 {
		return "", 0
	}
	if _, err := os.Lstat(filepath.Join(r.transient, filepath.Base(record.ID)+".timer")); err != nil {
		return "", check.Timeout
	}
	var last struct{ Status string }
	if json.Unmarshal([]byte(record.Labels[healthStateLabel]), &last) == nil {
		switch last.Status {
		case "starting", "healthy", "unhealthy":
			return last.Status, 0
		}
	}
	return "starting", 0
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
