// Package health is the gate that a new system has to pass before it is kept:
// checks of systemd and of the workloads under one deadline, which end in a
// Report.
//
// What has to be true again is a Baseline, taken by Record on the old system
// when an upgrade is staged. Run compares the machine with it on the new one.
// The gate is green once everything holds at the same time and has gone on
// holding for a moment, and red when the deadline comes first. It waits by
// event: systemd and containerd say when something changed.
//
// The package refuses to act. It starts, stops and restarts nothing, commits
// nothing, rolls nothing back; its caller does, by the Report. It knows
// containers only through a small interface (package workload reads
// containerd), and nothing of slots, images or boot states.
//
// It promises to fail closed and in time: what cannot be asked, does not
// answer or was not configured is a check that failed and is named, and Run
// returns at the deadline even when something it asked hangs for ever. The
// deadline is counted by the monotonic clock, so a wall clock that starts in
// 1970 and is set during the gate changes nothing.
package health

import (
	"fmt"
	"strings"
	"time"
)

// Workload is a container as far as it matters whether "the same" one runs
// again.
type Workload struct {
	Namespace   string `json:"namespace"`             // containerd namespace
	ID          string `json:"id"`                    // container ID, unique in the namespace
	Name        string `json:"name,omitempty"`        // nerdctl's name; "" if it has none
	Image       string `json:"image,omitempty"`       // reference that it was made from
	ImageDigest string `json:"imageDigest,omitempty"` // sha256:… of that reference's target; "" if the image record is gone
	Restart     string `json:"restart,omitempty"`     // restart policy, as in "always"; "" if containerd never starts it by itself
	Project     string `json:"project,omitempty"`     // compose project; "" if it belongs to none
	Service     string `json:"service,omitempty"`     // service within the compose project
	// Ports are the published ports of the host, as in "tcp/8080" or
	// "udp/10.0.0.1:53", sorted.
	Ports    []string    `json:"ports,omitempty"`
	Health   string      `json:"health,omitempty"`   // by nerdctl's health check: starting, healthy, unhealthy; "" without one
	Restarts int         `json:"restarts,omitempty"` // how often containerd's restart monitor started it again
	Declared Declaration `json:"declared,omitzero"`  // what the container says of itself by its labels
	// Failing is what was seen when it was recorded and did not answer as it declares;
	// "" if it did, or was not asked.
	Failing string `json:"failing,omitempty"`
}

// Level says what a check means for the verdict.
type Level string

// The levels. "" is the one that applies without a declaration: what ran before is
// required.
const (
	Required Level = "required" // red when it does not hold
	Wanted   Level = "wanted"   // reported only
	Ignore   Level = "ignore"   // not looked at
)

// Declaration is what a container asks of the gate by its labels osctl.gate.*.
type Declaration struct {
	Level   Level         `json:"level,omitempty"`     // osctl.gate
	Timeout time.Duration `json:"timeoutNs,omitempty"` // osctl.gate.timeout: how long it may take to become healthy, within the gate's deadline; 0 is all of it
	HTTP    string        `json:"http,omitempty"`      // osctl.gate.http: URL, seen from inside the container's network
	TCP     string        `json:"tcp,omitempty"`       // osctl.gate.tcp: [host]:port, seen from inside the container's network
	Exec    string        `json:"exec,omitempty"`      // osctl.gate.exec: command, run inside the container
	// HealthCheck is how long nerdctl's health check may take, where there is one and
	// nobody runs it: the gate does. 0 is that there is none, or that nerdctl runs it.
	HealthCheck time.Duration `json:"healthCheckNs,omitempty"`
	Bad         string        `json:"bad,omitempty"` // what is wrong with the labels, in words; the check fails with it
}

// String names the workload for people: namespace/project/service in a compose
// project, namespace/project/name for what is not the service's first container,
// namespace/name without a project, and the first twelve characters of the ID, as
// nerdctl prints it, without a name.
func (w Workload) String() string {
	first := w.Project + "-" + w.Service + "-1" // compose's name of a service's first container
	switch {
	case w.Name != "" && w.Project != "" && w.Service != "" && w.Name == first:
		return w.Namespace + "/" + w.Project + "/" + w.Service
	case w.Name != "" && w.Project != "":
		return w.Namespace + "/" + w.Project + "/" + w.Name
	case w.Name != "":
		return w.Namespace + "/" + w.Name
	}
	return w.Namespace + "/" + w.ID[:min(len(w.ID), 12)]
}

// Running is the status of a container whose process runs. The other values
// are containerd's ("created", "stopped", "paused", "pausing", "unknown") and
// "no task" for a container that was not started since the machine booted.
const Running = "running"

// Container is a workload and what it does at this moment.
type Container struct {
	Workload
	Status string `json:"status"`
	Pid    uint32 `json:"pid,omitempty"` // of its first process on the host; another one means that it was started again
}

// Baseline is what was true on the old system when an upgrade was staged. The
// zero value asks for nothing but a system without failed units and a
// containerd that answers.
type Baseline struct {
	Workloads   []Workload `json:"workloads"`   // containers that ran
	FailedUnits []string   `json:"failedUnits"` // units that had failed already, sorted
	// Routes are the routes of the main table, and Listening the sockets that
	// services listened on, as in "tcp/22 ssh.service"; both sorted.
	Routes     []string  `json:"routes,omitempty"`
	Listening  []string  `json:"listening,omitempty"`
	RecordedAt time.Time `json:"recordedAt"` // by the wall clock, for people
}

// Kind says what a Check looks at.
type Kind string

// The kinds of checks.
const (
	KindSystemd    Kind = "systemd"    // the system manager itself
	KindUnit       Kind = "unit"       // one unit that is required to be active
	KindContainerd Kind = "containerd" // the container daemon itself
	KindWorkload   Kind = "workload"   // one container of the baseline
	KindNetwork    Kind = "network"    // a route or a listening socket of the baseline
	KindConfig     Kind = "config"     // the gate's own configuration
	KindScript     Kind = "script"     // a Probe that is an operator's script
	KindExec       Kind = "exec"       // a Probe that runs a command
	KindHTTP       Kind = "http"       // a Probe that asks over HTTP
	KindTCP        Kind = "tcp"        // a Probe that connects
	KindSteady     Kind = "steady"     // that everything holds and goes on holding
)

// Check is one thing that was looked at, what was expected and what was seen
// last.
type Check struct {
	Kind     Kind          `json:"kind"`
	Name     string        `json:"name"`
	Required bool          `json:"required"` // the gate is red if it is not OK
	Seen     string        `json:"seen"`
	Expected string        `json:"expected"`
	OK       bool          `json:"ok"`
	Duration time.Duration `json:"durationNs"` // from the start of the gate until it held for good, or until the end

	within time.Duration // how long it may take until it holds; 0 is the gate's deadline
	again  int           // of a workload: how often it was started again during the gate
}

// Report is the outcome of the gate. The zero value is not green.
type Report struct {
	Green    bool          `json:"green"`
	Checks   []Check       `json:"checks"`
	Started  time.Time     `json:"started"`    // wall clock
	Finished time.Time     `json:"finished"`   // wall clock, which may have been set meanwhile
	Duration time.Duration `json:"durationNs"` // monotonic, so not always Finished minus Started
	// Overhead is the processor time that the gate took for itself, without what its
	// probes start. The rest of Duration is waiting.
	Overhead time.Duration `json:"overheadNs"`
}

// Progress is how far a gate got.
type Progress struct {
	Started  time.Time     `json:"started"`    // wall clock
	Elapsed  time.Duration `json:"elapsedNs"`  // since then, monotonic
	Deadline time.Duration `json:"deadlineNs"` // of the whole gate, from its start
	Steady   time.Duration `json:"steadyNs"`   // how long everything has to hold
	// Held is how long everything has held; nil while something does not.
	Held   *time.Duration `json:"heldNs,omitempty"`
	Checks []Check        `json:"checks"`
}

// Reason says in one line why the report is not green: each required check
// that failed, with what was seen and what was expected. It is empty for a
// green report. Checks that could not be made because what they ask did not
// answer are left out, since that is a failed check of its own.
func (r Report) Reason() string {
	if r.Green {
		return ""
	}
	var parts []string
	for _, c := range r.Checks {
		if c.Required && !c.OK && c.Seen != notSeen {
			parts = append(parts, fmt.Sprintf("%s: %s (expected: %s)", c.Name, c.Seen, c.Expected))
		}
	}
	if len(parts) == 0 {
		return "the gate did not run"
	}
	return strings.Join(parts, "; ")
}

// Warnings are the checks that failed and do not count, each in one line.
func (r Report) Warnings() []string {
	var list []string
	for _, c := range r.Checks {
		if !c.Required && !c.OK && c.Seen != notSeen {
			list = append(list, fmt.Sprintf("%s: %s (expected: %s)", c.Name, c.Seen, c.Expected))
		}
	}
	return list
}
