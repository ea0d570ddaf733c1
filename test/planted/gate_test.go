package planted

import "slices"

// gateFaults are in what the gate looks at beside the workloads.
func gateFaults() []fault {
	return []fault{
		{"gate: boot jobs off", "health/judge.go", "len(left) == 0", "true", "health TestRed", true},
		{"gate: failed units off", "health/judge.go", "list(worse, \"none\"), len(worse) == 0", "list(worse, \"none\"), true", "health TestRed", true},
		{"gate: units that had failed before count", "health/judge.go", "slices.Contains(o.Baseline.FailedUnits, name) || ", "", "health TestStillGreen TestBrokenBefore", true},
		{"gate: tolerated units count", "health/judge.go", " || tolerated(o, name)", "", "health TestBrokenBefore", true},
		{"gate: required units off", "health/judge.go", "c.OK = isActive(c.Seen)", "c.OK = true", "health TestRed", true},
		{"gate: a late network is read seldom", "health/look.go", "case g.readNetwork && now-g.last.networkAt >= networkBad:", "case g.readNetwork && now < 0:", "health TestNetworkIsLate", true},
		{"gate: a unit that came back is as before", "health/judge.go", "if c.OK && seen.unitsAgain[name] {", "if c.OK && len(name) == 0 {", "health TestSystemdIsNotListenedToForEver", true},
		{"gate: systemd is listened to for ever", "health/gate.go", "g.booted = !slices", "g.booted = g.recording && !slices", "health TestSystemdIsNotListenedToForEver", true},
		{"gate: a systemd that does not answer is good", "health/judge.go", "manager.Seen, manager.OK = seen.unitsErr.Error(), false", "manager.Seen, jobs.OK, failed.OK = seen.unitsErr.Error(), true, true", "health TestRed TestSlowAnswers", true},
		{"gate: routes off", "health/judge.go", "c.Seen = \"gone\"\n", "c.Seen, c.OK = \"gone\", true\n", "health TestNetwork", true},
		{"gate: one route is as good as two", "health/judge.go", " && !slices.Contains(before, line)", "", "health TestNetwork", true},
		{"gate: a cable that was pulled counts", "health/judge.go", "c.Seen, c.Required = \"gone; \"+device+\" has no carrier\", false", "c.Seen = \"gone; \"+device+\" has no carrier\"", "health TestNetwork", true},
		{"gate: listening sockets off", "health/judge.go", "c.Seen = \"nobody listens\"", "c.Seen, c.OK = \"nobody listens\", true", "health TestNetwork", true},
		{"gate: the network is not read after the soak", "health/look.go", "networkAgain || g.soaked(now)", "networkAgain", "health TestNetworkDuringTheSoak", true},
		{"gate: systemd's turn is taken for quiet", "health/look.go", "g.quiet = most > lookGapMost", "g.quiet = true", "health TestStorm", true},
		{"gate: systemd is listened to after the last good look", "health/gate.go", "\t\tif g.booted {\n\t\t\tg.deaf()\n\t\t}\n", "", "health TestSystemdIsNotListenedToForEver", true},
		{"gate: systemd is not asked after the soak", "health/look.go", "lookUntold || g.soaked(now)", "lookUntold", "health TestUnitDuringTheSoak", true},
		{"gate: systemd is asked whenever containers are", "health/look.go", "g.last == nil || !g.booted ||", "true ||", "health TestStorm", true},
		{"gate: what was asked before the soak was over will do", "health/gate.go", "all && g.soaked(g.last.at)", "all && g.soaked(now)", "health TestSlowLookAtTheEnd", true},
		{"gate: published ports are the machine's", "health/record.go", "slices.Contains(c.Ports, port)", "port == \"\"", "health TestRecord", true},
		{"gate: soak off", "health/gate.go", "all && g.soaked(g.last.at)", "all", "health TestCrashLoop TestHeldTooShort", false},
		{"gate: soak does not start anew", "health/gate.go", "\t\t\tg.held = nil\n", "\t\t\t_ = all\n", "health TestCrashLoop TestFlapping", true},
		{"gate: probes are not asked after the soak", "health/gate.go", " && g.confirmed(*g.held+g.o.Steady)", "", "health TestProbes", true},
		{"gate: each event is a look", "health/look.go", "g.gap = min(2*g.gap, lookGapMost)", "g.gap = lookGap", "health TestStorm", true},
		{"gate: restarts of what is down are forgotten", "health/look.go", "seen.startedAgain[key] = before.again\n", "_ = before\n", "health TestBlameOfWhatDoesNotRun", true},
		{"gate: no time of its own", "health/gate.go", "now >= c.within && !g.ever", "now < 0 && !g.ever", "health TestProbes TestDeclared", true},
		{"gate: probes off", "health/judge.go", "Required: p.Level != Wanted, Expected: p.Expected", "Required: false, Expected: p.Expected", "health TestProbes TestProbeHangs", true},
		{"gate: a probe may take for ever", "health/probe.go", "ask(ctx, p.Timeout, func", "ask(ctx, 1<<62, func", "health TestProbeHangs", true},
		{"gate: sockets of sessions count", "device/listening.go", "strings.CutPrefix(group, \"/system.slice/\")", "strings.CutPrefix(group, \"/\")", "device TestListening", true},
		{"gate: ports that nobody chose count", "device/listening.go", "port >= low && port <= high", "port < low && port > high", "device TestListening", true},
	}
}

// workloadFaults are in what the gate asks of containers.
func workloadFaults() []fault {
	return slices.Concat(labelFaults(), askedFaults(), []fault{
		{"gate: containerd off", "health/workloads.go", "daemon.Seen, daemon.OK = seen.containersErr.Error(), false", "daemon.Seen = seen.containersErr.Error()", "health TestRed", true},
		{"gate: a container that does not run", "health/workloads.go", "\tif c.Status != Running {\n\t\tif c.Restart", "\tif false {\n\t\tif c.Restart", "health TestRed", true},
		{"gate: another image", "health/workloads.go", "return \"running with image \" + c.ImageDigest, false", "return \"running with image \" + c.ImageDigest, true", "health TestRed", false},
		{"gate: an image that nobody knows", "health/workloads.go", "so it is not known to be the same image\", false", "so it is not known to be the same image\", true", "health TestRed", true},
		{"gate: started again", "health/workloads.go", "case seen.justStarted[containerKey(c.Workload)]:", "case false:", "health TestStartedAgain", true},
		{"gate: restarts by the count only", "health/look.go", "now.pid != before.pid || ", "", "health TestStartedAgain", true},
		{"gate: its health check has not passed", "health/workloads.go", "case c.Health == starting && want.Health != starting:", "case false:", "health TestDeclared", true},
		{"gate: its health check says unhealthy", "health/workloads.go", "case c.Health == unhealthy && want.Health != unhealthy:", "case false:", "health TestDeclared", true},
		{"gate: unhealthy before counts", "health/workloads.go", "c.Health == unhealthy && want.Health != unhealthy", "c.Health == unhealthy", "health TestBrokenBefore", true},
		{"gate: its answers off", "health/workloads.go", "return answer.seen, answer.ok", "return answer.seen, true", "health TestDeclared", true},
		{"gate: its labels are wrong", "health/workloads.go", "if c.Declared.Bad != \"\" {", "if false {", "health TestDeclared", true},
		{"gate: wanted counts", "health/workloads.go", "c.Required, c.within = declared.Level != Wanted && !want.fresh,", "c.Required, c.within = !want.fresh,", "health TestDeclared", true},
		{"gate: ignored is looked at", "health/workloads.go", "return c, declared.Level != Ignore", "return c, true", "health TestDeclared", true},
		{"gate: what did not run before counts", "health/workloads.go", "list = append(list, wanted{c.Workload, recorded})", "list = append(list, wanted{c.Workload, recorded && false})", "health TestRequiredButNotBefore", true},
		{"gate: required without a baseline off", "health/workloads.go", "if c.Declared.Level == Required && !known {", "if false && !known {", "health TestDeclaredWithoutBaseline", true},
		{"gate: a container that held is blamed", "health/gate.go", " || c.OK && now-g.since[checkID{c.Kind, c.Name}] >= g.o.Steady", "", "health TestBlame", true},
	})
}

// verdictFaults are in what follows from the gate.
func verdictFaults() []fault {
	return []fault{
		{"gate: a red gate is kept", "upgrade/settle.go", "\tif !report.Green {\n\t\tm.fail(", "\tif false {\n\t\tm.fail(", "upgrade TestSettleGoesBackFromARedTrial", false},
		{"gate: the reason is not recorded first", "upgrade/settle.go", "\t\tm.fail(booted, v.Reason)\n\t\tm.Log.Error(\"the gate is red\"", "\t\tdefer m.fail(booted, v.Reason)\n\t\tm.Log.Error(\"the gate is red\"", "upgrade TestHooksOfARedTrial", true},
		{"gate: red hooks off", "upgrade/settle.go", "m.Hooks.red(ctx, m.Log, v.Reason)", "", "upgrade TestHooksOfARedTrial", true},
		{"gate: green hooks off", "upgrade/settle.go", "m.Hooks.green(ctx, m.Log)", "", "upgrade TestHooksOfAGreenTrial", true},
		{"gate: nothing is kept for the workloads", "upgrade/settle.go", "m.Hooks.kept(ctx, m.Log)", "", "upgrade TestHooksOfAGreenTrial TestKeptAfterACut", true},
		{"gate: nobody looks back", "upgrade/settle.go", "v = m.lookBack(ctx, v)", "v.Report = nil", "upgrade TestLookingBack", true},
		{"gate: the lock is held while looking back", "upgrade/verdict.go", "\treport := m.Gate(ctx, m.baseline(v.Slot))\n", "\trelease, _ := m.Lock()\n\treport := m.Gate(ctx, m.baseline(v.Slot))\n\tif release() != nil {\n\t\treturn v\n\t}\n", "upgrade TestLookingBackHoldsNoLock", true},
	}
}
