package planted

// labelFaults are in what containers declare.
func labelFaults() []fault {
	return []fault{
		{"labels: an unknown one is passed over", "workload/declare.go", "case strings.HasPrefix(key, gatePrefix):", "case false:", "workload TestDeclareRefuses", false},
		{"labels: any level will do", "workload/declare.go", "case health.Required, health.Wanted, health.Ignore:\n\t\treturn level, nil", "default:\n\t\treturn level, nil", "workload TestDeclareRefuses", true},
		{"labels: no time at all", "workload/declare.go", "err != nil || d <= 0", "err != nil", "workload TestDeclareRefuses", true},
		{"labels: links out of a container", "workload/namespace.go", "dir.OpenFile(\"etc/hosts\",", "os.OpenFile(root+\"/etc/hosts\",", "workload TestHostsOfAContainer", true},
		{"labels: passwords", "workload/declare.go", "if u.User != nil {", "if false {", "workload TestDeclareRefuses", true},
		{"labels: any port", "workload/declare.go", "if err != nil || n == 0 {", "if false && (err != nil || n == 0) {", "workload TestDeclareRefuses", true},
		{"labels: escapes", "workload/declare.go", "case !strconv.IsPrint(r):", "case false:", "workload TestDeclareRefuses", true},
		{"gate: what did not answer before counts", "health/workloads.go", "if !answer.ok && failedBefore(want, c) {", "if false {", "health TestDidNotAnswerBefore", true},
		{"gate: nobody is asked when staging", "health/record.go", "\t\tg.askAll(ctx, running)\n", "\t\t_ = g.askAll\n", "health TestDidNotAnswerBefore", true},
		{"gate: wrong labels are staged", "health/record.go", "if c.Declared.Bad != \"\" && c.Declared.Level != Ignore {", "if false {", "health TestRecordRefusesLabels", true},
		{"gate: probes are not waited for", "health/gate.go", "\tg.end()\n", "", "health TestProbesEnd", true},
	}
}

// askedFaults are in what is read of containers and asked of them, which only a real
// containerd shows.
func askedFaults() []fault {
	return []fault{
		{"labels: the host's network is asked", "workload/namespace.go", "unix.Setns(int(n.handle.Fd()), unix.CLONE_NEWNET)", "error(nil)", "workload TestProbeNetwork", true},
		{"labels: whichever process has the number", "workload/probe.go", "if err == nil && (got.Process.Pid", "if false && (got.Process.Pid", "workload TestProbeHostNetwork", true},
		{"labels: any status will do", "workload/probe.go", "want.status == 0 && response.StatusCode/100 == 2", "want.status == 0", "workload TestProbeNetwork", true},
		{"labels: redirects are followed", "workload/probe.go", "return http.ErrUseLastResponse", "return nil", "workload TestProbeNetwork", true},
		{"labels: any exit status will do", "workload/exec.go", "case code != 0:", "case false:", "workload TestProbeExec TestRealContainerd", true},
		{"labels: what a command leaves stays", "workload/exec.go", "if n, err = killMarked(r.container, marker+r.id); err != nil {", "if n = 0; err != nil {", "workload TestProbeExec TestProbeExecHangs", true},
		{"labels: a command that hangs stays", "workload/exec.go", "\tif r.started {\n", "\tif false {\n", "workload TestProbeExecHangs", true},
		{"labels: containerd keeps a command", "workload/exec.go", "if _, err := r.process.Delete(ctx); err != nil && !errdefs.IsNotFound(err) {", "if err := ctx.Err(); err != nil {", "workload TestProbeExec TestProbeExecHangs", true},
		{"labels: no compose", "workload/record.go", "Project:   labels[projectLabel],", "", "workload TestListReadsLabels TestNerdctlCompose", true},
		{"labels: no health", "workload/record.go", "w.Health, w.Declared.HealthCheck = r.healthState(record)", "", "workload TestListReadsLabels TestNerdctlHealth", true},
		{"labels: what a health check said before the boot", "workload/record.go", "if _, err := os.Lstat(filepath.Join(r.transient, filepath.Base(record.ID)+\".timer\")); err != nil {", "if false {", "workload TestNerdctlHealth", true},
		{"labels: no restarts", "workload/record.go", "\t\tw.Restarts = n\n", "", "workload TestListReadsLabels", true},
	}
}
