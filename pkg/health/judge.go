package health

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// notSeen stands in a check that could not be made.
const notSeen = "not known"

// observation is one look at the machine. Where an error is set, the other
// fields beside it mean nothing.
type observation struct {
	units         Units
	unitsErr      error
	containers    []Container
	containersErr error
	network       Network
	networkErr    error
	probes        []probeResult
	answers       map[string]result // of containers that declare how to be asked, by containerKey
	justStarted   map[string]bool   // by containerKey: started again since the look before
	startedAgain  map[string]int    // by name: how often that was seen in this gate
}

// containerKey tells containers apart.
func containerKey(w Workload) string { return w.Namespace + "/" + w.ID }

// judge compares one look at the machine with what is expected. It is pure:
// everything that is waited for becomes true by looking again.
func judge(o *Options, seen *observation) []Check {
	return slices.Concat(
		judgeSystemd(o, seen), judgeContainers(o, seen), judgeNetwork(o, seen), judgeProbes(seen),
	)
}

func judgeSystemd(o *Options, seen *observation) []Check {
	manager := Check{Kind: KindSystemd, Name: "systemd", Required: true, Expected: "answers", Seen: "answers", OK: true}
	jobs := Check{Kind: KindSystemd, Name: "boot jobs", Required: true, Expected: "none left", Seen: notSeen}
	failed := Check{Kind: KindSystemd, Name: "failed units", Required: true, Expected: "none", Seen: notSeen}
	if known := o.Baseline.FailedUnits; len(known) > 0 {
		failed.Expected = "none but " + strings.Join(known, ", ") + ", which had failed before"
	}
	if seen.unitsErr != nil {
		manager.Seen, manager.OK = seen.unitsErr.Error(), false
	} else {
		left := seen.units.Pending
		jobs.Seen, jobs.OK = list(left, "none left"), len(left) == 0
		worse := slices.DeleteFunc(slices.Clone(seen.units.Failed), func(name string) bool {
			return slices.Contains(o.Baseline.FailedUnits, name) || tolerated(o, name)
		})
		failed.Seen, failed.OK = list(worse, "none"), len(worse) == 0
	}
	checks := []Check{manager, jobs, failed}
	for _, name := range o.RequiredUnits {
		c := Check{Kind: KindUnit, Name: name, Required: true, Expected: "active", Seen: notSeen}
		if seen.unitsErr == nil {
			c.Seen = seen.units.State[name]
			c.OK = c.Seen == "active" || c.Seen == "reloading"
		}
		checks = append(checks, c)
	}
	return checks
}

// tolerated reports whether a unit may fail. A pattern that is none was refused when
// it was read; here it matches nothing.
func tolerated(o *Options, name string) bool {
	return slices.ContainsFunc(o.Tolerated, func(pattern string) bool {
		ok, err := path.Match(pattern, name)
		return ok && err == nil
	})
}

// list is for people: all of a few, the first of many.
func list(names []string, none string) string {
	const most = 8
	switch {
	case len(names) == 0:
		return none
	case len(names) > most:
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

func judgeContainers(o *Options, seen *observation) []Check {
	daemon := Check{Kind: KindContainerd, Name: "containerd", Required: true, Expected: "answers", Seen: "answers", OK: true}
	if seen.containersErr != nil {
		daemon.Seen, daemon.OK = seen.containersErr.Error(), false
	}
	checks := []Check{daemon}
	for _, want := range expected(o, seen.containers) {
		if c, counts := judgeWanted(want, seen); counts {
			checks = append(checks, c)
		}
	}
	return checks
}

// expected are the workloads that have to run: those of the baseline; where there is
// none, those that say so themselves.
func expected(o *Options, containers []Container) []Workload {
	if !o.Baseline.RecordedAt.IsZero() || len(o.Baseline.Workloads) > 0 {
		return o.Baseline.Workloads
	}
	var list []Workload
	for _, c := range containers {
		if c.Declared.Level == Required {
			list = append(list, c.Workload)
		}
	}
	return list
}

// counts reports whether a container is one of those that are looked at.
func counts(o *Options, c Container) bool {
	return c.Declared.Level != Ignore && slices.ContainsFunc(expected(o, []Container{c}), func(want Workload) bool {
		return same(want, c)
	})
}

// same reports whether a container is the wanted one: by its ID, or made anew under
// the same name.
func same(want Workload, c Container) bool {
	return c.Namespace == want.Namespace && (c.ID == want.ID || c.Name != "" && c.Name == want.Name)
}

// judgeWanted judges one workload. It does not count when the container says so; what
// it says today comes before what it said when it was recorded.
func judgeWanted(want Workload, seen *observation) (c Check, counts bool) {
	c = Check{Kind: KindWorkload, Name: want.String(), Expected: Running, Seen: notSeen}
	if want.ImageDigest != "" {
		c.Expected += " with image " + want.ImageDigest
	}
	declared := want.Declared
	if seen.containersErr == nil {
		var best *Container
		c.Seen, c.OK, best = judgeWorkload(want, seen)
		if best != nil {
			declared = best.Declared
		}
	}
	c.Required, c.within = declared.Level != Wanted, declared.Timeout
	return c, declared.Level != Ignore
}

// judgeWorkload looks for a container that is the wanted one. If none will do, the
// first one says what is wrong, the one with the ID before others. found is the one
// that was judged, nil if there is none.
func judgeWorkload(want Workload, seen *observation) (text string, ok bool, found *Container) {
	var list []Container
	for _, c := range seen.containers {
		switch {
		case !same(want, c):
		case c.ID == want.ID:
			list = slices.Insert(list, 0, c)
		default:
			list = append(list, c)
		}
	}
	for i := range list {
		if text, ok := judgeContainer(want, list[i], seen); ok {
			return text, true, &list[i]
		}
	}
	if len(list) == 0 {
		return "no such container", false, nil
	}
	text, ok = judgeContainer(want, list[0], seen)
	return text, ok, &list[0]
}

func judgeContainer(want Workload, c Container, seen *observation) (text string, ok bool) {
	if c.Declared.Bad != "" {
		return "its labels are wrong: " + c.Declared.Bad, false
	}
	if c.Status != Running {
		if c.Restart == "" {
			return c.Status + ", and it has no restart policy: containerd does not start it at boot", false
		}
		return fmt.Sprintf("%s (restart policy %s)", c.Status, c.Restart), false
	}
	if text, ok = judgeImage(want, c); !ok {
		return text, false
	}
	more, ok := judgeLife(want, c, seen)
	if more != "" {
		text += "; " + more
	}
	return text, ok
}

// judgeImage judges what a running container was made from.
func judgeImage(want Workload, c Container) (text string, ok bool) {
	switch {
	case want.ImageDigest == "" || c.ImageDigest == want.ImageDigest:
		return describe(c), true
	case c.ImageDigest != "":
		return "running with image " + c.ImageDigest, false
	case c.ID == want.ID:
		// The very container that was recorded: its files are those of its
		// snapshot, whatever became of the image's name.
		return "running; its image record is gone", true
	default:
		return "running; its image record is gone, so it is not known to be the same image", false
	}
}

// The states of nerdctl's health check (its pkg/healthcheck/health.go).
const (
	starting  = "starting"
	unhealthy = "unhealthy"
)

// judgeLife judges how a running container does: by its own health check, by what it
// answers, and by whether it goes on running.
func judgeLife(want Workload, c Container, seen *observation) (text string, ok bool) {
	switch {
	case seen.justStarted[containerKey(c.Workload)]:
		return "started again " + times(seen.startedAgain[c.String()]) + " during the gate", false
	case c.Health == starting && want.Health != starting:
		return "its health check has not passed yet", false
	case c.Health == unhealthy && want.Health != unhealthy:
		return "its health check says unhealthy", false
	}
	if c.Health == unhealthy {
		text = "unhealthy, as before"
	}
	if d := c.Declared; d.HTTP == "" && d.TCP == "" && d.Exec == "" {
		return text, true
	}
	answer := seen.answers[containerKey(c.Workload)]
	return answer.seen, answer.ok
}

// describe words a running container as a check expects it.
func describe(c Container) string {
	if c.ImageDigest == "" {
		return Running
	}
	return Running + " with image " + c.ImageDigest
}

// judgeNetwork compares routes and listening sockets with those of the baseline. A
// route by an interface without a carrier is only reported: it is no fault of the
// system that somebody pulled a cable meanwhile.
func judgeNetwork(o *Options, seen *observation) []Check {
	var checks []Check
	if o.Network == nil {
		return nil
	}
	for _, want := range o.Baseline.Routes {
		to, device, _ := strings.Cut(want, " dev ")
		c := Check{Kind: KindNetwork, Name: "route " + to, Required: true, Expected: "there, as by " + device, Seen: notSeen}
		if seen.networkErr == nil {
			c.Seen, c.OK = find(seen.network.Routes, to)
			if !c.OK && slices.Contains(seen.network.Unplugged, device) {
				c.Seen, c.Required = device+" has no carrier", false
			}
		}
		checks = append(checks, c)
	}
	for _, want := range o.Baseline.Listening {
		port, owner, _ := strings.Cut(want, " ")
		c := Check{Kind: KindNetwork, Name: "port " + port, Required: true, Expected: "somebody listens, as " + owner + " did", Seen: notSeen}
		if seen.networkErr == nil {
			c.Seen, c.OK = find(seen.network.Listening, port)
		}
		checks = append(checks, c)
	}
	if seen.networkErr != nil && len(checks) > 0 {
		checks = append(checks, Check{Kind: KindNetwork, Name: "network", Required: true, Expected: "can be read", Seen: seen.networkErr.Error()})
	}
	return checks
}

// find looks for the line that begins with a word.
func find(lines []string, word string) (seen string, ok bool) {
	for _, line := range lines {
		if line == word || strings.HasPrefix(line, word+" ") {
			return line, true
		}
	}
	return "none", false
}

func judgeProbes(seen *observation) []Check {
	var checks []Check
	for _, p := range seen.probes {
		checks = append(checks, Check{
			Kind: p.Kind, Name: p.Name, Required: p.Level != Wanted, Expected: p.Expected,
			Seen: p.seen, OK: p.ok, within: p.Within,
		})
	}
	return checks
}
