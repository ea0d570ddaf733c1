package health

import (
	"fmt"
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
}

// judge compares one look at the machine with what is expected. It is pure:
// everything that is waited for becomes true by looking again.
func judge(o *Options, seen *observation) []Check {
	checks := append(judgeSystemd(o, seen), judgeContainers(o, seen)...)
	for i := range checks {
		checks[i].Required = true
	}
	return checks
}

func judgeSystemd(o *Options, seen *observation) []Check {
	manager := Check{Kind: KindSystemd, Name: "systemd", Expected: "answers", Seen: "answers", OK: true}
	jobs := Check{Kind: KindSystemd, Name: "boot jobs", Expected: "none left", Seen: notSeen}
	failed := Check{Kind: KindSystemd, Name: "failed units", Expected: "none", Seen: notSeen}
	if known := o.Baseline.FailedUnits; len(known) > 0 {
		failed.Expected = "none but " + strings.Join(known, ", ") + ", which had failed before"
	}
	if seen.unitsErr != nil {
		manager.Seen, manager.OK = seen.unitsErr.Error(), false
	} else {
		left := seen.units.Pending
		jobs.Seen, jobs.OK = list(left, "none left"), len(left) == 0
		worse := slices.DeleteFunc(slices.Clone(seen.units.Failed), func(name string) bool {
			return slices.Contains(o.Baseline.FailedUnits, name)
		})
		failed.Seen, failed.OK = list(worse, "none"), len(worse) == 0
	}
	checks := []Check{manager, jobs, failed}
	for _, name := range o.RequiredUnits {
		c := Check{Kind: KindUnit, Name: name, Expected: "active", Seen: notSeen}
		if seen.unitsErr == nil {
			c.Seen = seen.units.State[name]
			c.OK = c.Seen == "active" || c.Seen == "reloading"
		}
		checks = append(checks, c)
	}
	return checks
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
	daemon := Check{Kind: KindContainerd, Name: "containerd", Expected: "answers", Seen: "answers", OK: true}
	if seen.containersErr != nil {
		daemon.Seen, daemon.OK = seen.containersErr.Error(), false
	}
	checks := []Check{daemon}
	for _, want := range o.Baseline.Workloads {
		c := Check{Kind: KindWorkload, Name: want.String(), Expected: Running, Seen: notSeen}
		if want.ImageDigest != "" {
			c.Expected += " with image " + want.ImageDigest
		}
		if seen.containersErr == nil {
			c.Seen, c.OK = judgeWorkload(want, seen.containers)
		}
		checks = append(checks, c)
	}
	return checks
}

// judgeWorkload looks for a container that is the wanted one: the same by its
// ID, or made anew under the same name. If none will do, the first one says
// what is wrong, the one with the ID before others.
func judgeWorkload(want Workload, containers []Container) (seen string, ok bool) {
	var same []Container
	for _, c := range containers {
		switch {
		case c.Namespace != want.Namespace:
		case c.ID == want.ID:
			same = slices.Insert(same, 0, c)
		case c.Name != "" && c.Name == want.Name:
			same = append(same, c)
		}
	}
	for _, c := range same {
		if text, ok := judgeContainer(want, c); ok {
			return text, true
		}
	}
	if len(same) == 0 {
		return "no such container", false
	}
	return judgeContainer(want, same[0])
}

func judgeContainer(want Workload, c Container) (seen string, ok bool) {
	if c.Status != Running {
		if c.Restart == "" {
			return c.Status + ", and it has no restart policy: containerd does not start it at boot", false
		}
		return fmt.Sprintf("%s (restart policy %s)", c.Status, c.Restart), false
	}
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

// describe words a running container as a check expects it.
func describe(c Container) string {
	if c.ImageDigest == "" {
		return Running
	}
	return Running + " with image " + c.ImageDigest
}
