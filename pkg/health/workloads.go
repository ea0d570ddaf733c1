package health

import (
	"fmt"
	"slices"
	"time"
)

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

// wanted is a workload that is looked at.
type wanted struct {
	Workload
	// fresh: it did not run when the rest was recorded. It cannot have got worse, so
	// whatever it says of itself, it is only reported.
	fresh bool
}

// expected are the workloads that are looked at: those of the baseline, and the
// containers that say themselves that they are required. Without a baseline the latter
// count.
func expected(o *Options, containers []Container) []wanted {
	recorded := !o.Baseline.RecordedAt.IsZero() || len(o.Baseline.Workloads) > 0
	var list []wanted
	for _, w := range o.Baseline.Workloads {
		list = append(list, wanted{w, false})
	}
	for _, c := range containers {
		known := slices.ContainsFunc(list, func(w wanted) bool { return same(w.Workload, c) })
		if c.Declared.Level == Required && !known {
			list = append(list, wanted{c.Workload, recorded})
		}
	}
	return list
}

// level says what a container means for the verdict; Ignore is that it is not looked
// at.
func level(o *Options, c Container) Level {
	for _, w := range expected(o, []Container{c}) {
		switch {
		case !same(w.Workload, c):
		case w.fresh, failedBefore(w.Workload, c) && c.Declared.Level != Ignore:
			return Wanted
		default:
			return c.Declared.Level
		}
	}
	return Ignore
}

// same reports whether a container is the wanted one: by its ID, or made anew under
// the same name.
func same(want Workload, c Container) bool {
	return c.Namespace == want.Namespace && (c.ID == want.ID || c.Name != "" && c.Name == want.Name)
}

// judgeWanted judges one workload. It does not count when the container says so; what
// it says today comes before what it said when it was recorded.
func judgeWanted(want wanted, seen *observation) (c Check, counts bool) {
	c = Check{Kind: KindWorkload, Name: want.String(), Expected: Running, Seen: notSeen}
	if want.ImageDigest != "" {
		c.Expected += " with image " + want.ImageDigest
	}
	declared := want.Declared
	if seen.containersErr == nil {
		var best *Container
		c.Seen, c.OK, best = judgeWorkload(want.Workload, seen)
		if best != nil {
			declared = best.Declared
			c.again = seen.startedAgain[containerKey(best.Workload)]
		}
	}
	if asks(declared) {
		c.Expected += ", and answering"
	}
	if want.fresh {
		c.Expected += ", though it did not run when the upgrade was staged"
	}
	c.Required, c.within = declared.Level != Wanted && !want.fresh, declared.Timeout
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
		return "started again " + times(seen.startedAgain[containerKey(c.Workload)]) + " during the gate", false
	case c.Health == starting && want.Health != starting:
		return "its health check has not passed yet", false
	case c.Health == unhealthy && want.Health != unhealthy:
		return "its health check says unhealthy", false
	}
	if c.Health == unhealthy {
		text = "unhealthy, as before"
	}
	if !asks(c.Declared) {
		return text, true
	}
	answer := seen.answers[containerKey(c.Workload)]
	if !answer.ok && failedBefore(want, c) {
		return answer.seen + "; neither did it answer before", true
	}
	return answer.seen, answer.ok
}

// asks reports whether a container says how it can be asked.
func asks(d Declaration) bool {
	return d.HTTP != "" || d.TCP != "" || d.Exec != "" || d.HealthCheck > 0
}

// askLimit is how long the questions to a container may take.
func askLimit(d Declaration) time.Duration { return max(lookLimit, d.HealthCheck+endLimit) }

// failedBefore reports whether a container did not do well when it was recorded, so
// that an answer which will not do is nothing new.
func failedBefore(want Workload, c Container) bool {
	return want.Failing != "" || want.Health == unhealthy && c.Declared.HealthCheck > 0
}

// describe words a running container as a check expects it.
func describe(c Container) string {
	if c.ImageDigest == "" {
		return Running
	}
	return Running + " with image " + c.ImageDigest
}
