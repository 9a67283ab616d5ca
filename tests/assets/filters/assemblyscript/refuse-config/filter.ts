// Filter refuse-config refuses a configuration that contains the word "refuse". ../../README.md describes it.
export * from "@solo-io/proxy-runtime/proxy";
import { Context, FilterHeadersStatusValues, LogLevelValues, registerRootContext, stream_context } from "@solo-io/proxy-runtime";
import { Plugin, Stream } from "../common/filter";

class RefuseConfig extends Plugin {
  constructor(id: u32) {
    super(id, "refuse-config");
  }

  createContext(id: u32): Context {
    return new RefuseConfigStream(id, this);
  }

  onConfigure(size: u32): bool {
    super.onConfigure(size);
    if (!this.text().includes("refuse")) {
      return true;
    }
    this.log(LogLevelValues.error, "the configuration contains the word refuse: " + this.text());
    return false;
  }
}

class RefuseConfigStream extends Stream {
  onResponseHeaders(count: u32, end: bool): FilterHeadersStatusValues {
    stream_context.headers.response.add("x-configuration", this.plugin().text());
    return super.onResponseHeaders(count, end);
  }
}

registerRootContext((id: u32) => new RefuseConfig(id), "refuse-config");
