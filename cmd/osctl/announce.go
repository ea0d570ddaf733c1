package main

import (
	"context"
	"path/filepath"

	"github.com/kapernikov/osctl/pkg/announce"
	"github.com/kapernikov/osctl/pkg/status"
)

// lineFile, in the runtime directory, is the line that the image shows on the console
// and to who logs in (osctl-announce.service).
const lineFile = "line"

// announce tells those who do not ask how the machine stands now. Nothing fails for
// want of it.
func (m *machine) announce(ctx context.Context) {
	if err := m.tell(ctx); err != nil {
		m.log.Warn("how the machine stands is not announced", "error", err)
	}
}

func (m *machine) tell(ctx context.Context) error {
	facts := announce.Facts{Shot: status.Take(ctx, m.sources())}
	if now, _, behind := m.clock().Behind(); !behind {
		facts.Now = now
	}
	if kept, err := m.readReport(); err == nil {
		facts.Report = &kept.Report
	}
	files := announce.Files{Line: filepath.Join(m.config.RuntimeDir, lineFile), Metrics: m.config.Metrics}
	if files.Metrics == "" {
		files.Metrics = filepath.Join(m.config.RuntimeDir, "metrics", "osctl.prom")
	}
	return files.Write(facts)
}
