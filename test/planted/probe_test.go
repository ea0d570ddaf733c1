package planted

// probeFaults are in how the operator's own checks are run.
func probeFaults() []fault {
	return []fault{
		{"probe: what a command leaves goes on", "probe/probe.go", "	res.Killed, res.Names, res.Remain = w.end(p.cmd.Process.Pid)\n", "	if !res.Ended {\n		res.Killed, res.Names, res.Remain = w.end(p.cmd.Process.Pid)\n	}\n", "probe TestDaemon", false},
		{"probe: only the process group is killed", "probe/group.go", "os.WriteFile(g.file(\"cgroup.kill\"), []byte(\"1\"), 0)", "unix.Kill(-pids[0], unix.SIGKILL)", "probe TestDaemon TestForkBomb", true},
		{"probe: nobody is hunted", "probe/hunt.go", "p.session == session ||", "p.session != session ||", "probe TestDaemon TestIgnoresTerm", true},
		{"probe: orphans are let go", "probe/hunt.go", "unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1,", "unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0,", "probe TestDaemon", true},
		{"probe: no SIGTERM", "probe/probe.go", "unix.Kill(-p.cmd.Process.Pid, unix.SIGTERM)", "unix.Kill(-p.cmd.Process.Pid, 0)", "probe TestHangs", true},
		{"probe: late is good", "probe/probe.go", "return Result{Late: limit, Err: errLate}", "return Result{Ended: true, Late: limit}", "probe TestHangs TestIgnoresTerm TestFlood", false},
		{"probe: any exit code is good", "probe/probe.go", "r.Ended && r.Code == 0 &&", "r.Ended &&", "probe TestEnds TestChecks", true},
		{"probe: all output is kept", "probe/output.go", "n > 0 {\n		t.kept", "n > 1<<40 {\n		t.kept", "probe TestTail", true},
		{"probe: what cannot be read is passed over", "probe/checks.go", "return err.Error(), false", "return err.Error(), true", "probe TestChecks", true},
		{"probe: a link to nowhere is passed over", "probe/script.go", "			if err != nil {\n				return nil, fmt.Errorf(\"reading the scripts: %w\", err)\n			}\n			if info", "			if err != nil {\n				continue\n			}\n			if info", "probe TestScripts", true},
		{"probe: nothing is disabled", "probe/script.go", " || slices.Contains(disabled, name)", "", "probe TestScripts TestChecks", true},
		{"probe: wanted is required", "probe/checks.go", "{WantedDir, health.Wanted}", "{WantedDir, health.Required}", "probe TestChecks", true},
		{"probe: any status is good", "probe/ask.go", "if status.code != q.Status && (q.Status != 0 || status.code/100 != 2) {", "if false {", "probe TestOverHTTP", true},
		{"probe: any body is good", "probe/ask.go", "!bytes.Contains(body, q.Body) || !pattern.Match(body)", "(!bytes.Contains(body, q.Body) || !pattern.Match(body)) && false", "probe TestOverHTTP", true},
		{"probe: a body has no end", "probe/ask.go", "io.LimitReader(response.Body, maxBody)", "io.LimitReader(response.Body, 1<<40)", "probe TestBodyIsBounded", true},
		{"probe: redirects are followed", "probe/ask.go", "return http.ErrUseLastResponse", "return nil", "probe TestOverHTTP", true},
		{"probe: a port that refuses is good", "probe/ask.go", "return err.Error(), false\n			}\n			conn.Close()", "return err.Error(), true\n			}\n			conn.Close()", "probe TestOverTCP", true},
		{"health.yaml: two probes of one name", "config/health.go", "if names[p.Name] {", "if false {", "config TestLoadHealthRefuses", true},
		{"health.yaml: a probe that asks nothing", "config/health.go", "case kinds != 1:", "case kinds > 1:", "config TestLoadHealthRefuses", true},
		{"health.yaml: what is wrong counts", "config/health.go", "	if err != nil {\n		return f, err\n	}\n	return got, nil", "	return got, err", "config TestLoadHealth", true},
		{"gate: scripts run beside each other", "health/probe.go", "if probe.Queue != \"\" {", "if false {", "health TestQueue TestQueueHeldUp", true},
		{"gate: who hangs at the end is not named", "health/gate.go", "g.soaked(now) {\n		return blameLast", "g.held != nil && now-*g.held < 0 {\n		return blameLast", "health TestHangsAtTheEnd", true},
	}
}
