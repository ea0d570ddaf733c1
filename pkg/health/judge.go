package health

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// notSeen stands in a check that could not be made.
const notSeen = "not known"

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
			c.OK = isActive(c.Seen)
			if c.OK && seen.unitsAgain[name] {
				c.Seen, c.OK = c.Seen+", and was not in between", false
			}
		}
		checks = append(checks, c)
	}
	return checks
}

// isActive reports whether a unit does its work, systemd(1), "Units".
func isActive(state string) bool { return state == "active" || state == "reloading" }

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

// judgeNetwork compares routes and listening sockets with those of the baseline.
func judgeNetwork(o *Options, seen *observation) []Check {
	if o.Network == nil || o.NetworkLevel == Ignore {
		return nil
	}
	var checks []Check
	for _, want := range o.Baseline.Routes {
		checks = append(checks, judgeRoute(want, o.Baseline.Routes, seen))
	}
	for _, want := range o.Baseline.Listening {
		port, owner, _ := strings.Cut(want, " ")
		c := Check{Kind: KindNetwork, Name: "port " + port, Required: true, Expected: "somebody listens, as " + owner + " did", Seen: notSeen}
		if seen.networkErr == nil {
			c.Seen = "nobody listens"
			for _, line := range seen.network.Listening {
				if at, by, _ := strings.Cut(line, " "); at == port {
					c.Seen, c.OK = by+" listens", true
				}
			}
		}
		checks = append(checks, c)
	}
	if seen.networkErr != nil && len(checks) > 0 {
		checks = append(checks, Check{Kind: KindNetwork, Name: "network", Required: true, Expected: "can be read", Seen: seen.networkErr.Error()})
	}
	for i := range checks {
		checks[i].Required = checks[i].Required && o.NetworkLevel != Wanted
	}
	return checks
}

// judgeRoute looks for a route to the same network by the same interface, or by one
// that had none there before: interfaces change their names with the kernel. A route
// by an interface without a carrier is only reported: it is no fault of the system
// that somebody pulled a cable meanwhile.
func judgeRoute(want string, before []string, seen *observation) Check {
	c := Check{Kind: KindNetwork, Name: "route " + want, Required: true, Expected: "there", Seen: notSeen}
	if seen.networkErr != nil {
		return c
	}
	to, device, _ := strings.Cut(want, " dev ")
	c.Seen = "gone"
	for _, line := range seen.network.Routes {
		switch got, by, _ := strings.Cut(line, " dev "); {
		case line == want:
			c.Seen, c.OK = "there", true
			return c
		case got == to && !slices.Contains(before, line):
			c.Seen, c.OK = "by "+by+" instead", true
		}
	}
	if !c.OK && slices.Contains(seen.network.Unplugged, device) {
		c.Seen, c.Required = "gone; "+device+" has no carrier", false
	}
	return c
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
